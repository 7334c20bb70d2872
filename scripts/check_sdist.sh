#!/usr/bin/env bash
# Builds the source distribution, unpacks it elsewhere, and runs tests from it: all are collected, and those of bundles,
# preprocessing, tasks and packaging pass with what is unpacked alone. Wants an environment with [dev].
set -euo pipefail

checkout=$(cd "$(dirname "$0")/.." && pwd)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

python3 -c 'import sys; from hatchling.builders.sdist import SdistBuilder as B; list(B(sys.argv[1]).build(directory=sys.argv[2]))' \
    "$checkout" "$work"
tar --extract --gzip --file "$work"/xattn_edge-*.tar.gz --directory "$work"
cd "$work"/xattn_edge-*/
export PYTHONPATH="$PWD:$PWD/export:$PWD/runtime" # what is unpacked, not what is installed
unset PYTEST_ADDOPTS
python3 -m pytest --collect-only -q >"$work/collected" || { tail -n 20 "$work/collected" >&2; exit 1; }
python3 -m pytest -q -n auto --dist loadfile -p no:cacheprovider \
    tests/runtime/bundle tests/runtime/preprocess tests/runtime/tasks \
    tests/test_packaging.py tests/test_import_rule.py tests/test_public_api.py
echo "check_sdist: $(tail -n 1 "$work/collected"), $(du -m "$work"/xattn_edge-*.tar.gz | cut -f1) MB"
