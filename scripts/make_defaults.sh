#!/usr/bin/env bash
# Makes the int8 bundles that ship in the wheel from the checkpoints of this repository.
#     scripts/make_defaults.sh
# needs an environment with the [dev] extra. The dates inside are those of the checkpoint's last commit, so that the
# same checkpoint and versions give the same bytes.
set -euo pipefail

cd "$(dirname "$0")/.."
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
for name in emoji-caption shapes-vqa; do
    SOURCE_DATE_EPOCH=$(git log -1 --format=%ct -- "checkpoints/$name")
    export SOURCE_DATE_EPOCH
    xattn-edge export "checkpoints/$name" -o "$work/$name.xattn" --quiet
    xattn-edge quantize "$work/$name.xattn" -o "$work/$name-int8.xattn" --mode int8 --quiet
    target="runtime/xattn_runtime/defaults/$name.xattn"
    rm -rf "$target"
    cp -r "$work/$name-int8.xattn" "$target"
    xattn-edge verify "$target"
done
