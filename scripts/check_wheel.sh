#!/usr/bin/env bash
# Builds the wheel, installs it with [cpu] alone into a fresh environment, and checks what a device would get:
# the command answers away from the checkout, no torch and no onnx are there, and the environment stays small.
set -euo pipefail

limit_mb=265
checkout=$(cd "$(dirname "$0")/.." && pwd)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

python3 -m venv "$work/venv"
"$work/venv/bin/pip" wheel --quiet --no-deps --wheel-dir "$work" "$checkout"
empty_mb=$(du -sm "$work/venv" | cut -f1)
"$work/venv/bin/pip" install --quiet -c "$checkout/constraints.txt" "$(ls "$work"/xattn_edge-*.whl)[cpu]"
added_mb=$(($(du -sm "$work/venv" | cut -f1) - empty_mb))

cp "$checkout"/examples/*.png "$work"
cd "$work"
for module in torch onnx transformers; do
    if venv/bin/python -c "import $module" 2>/dev/null; then
        echo "check_wheel: expected no $module beside [cpu], found it" >&2
        exit 1
    fi
done
for image in *.png; do
    caption=$(venv/bin/xattn-edge caption "$image")
    answer=$(venv/bin/xattn-edge vqa "$image" "what color is the shape?")
    if [ -z "$caption" ] || [ -z "$answer" ]; then
        echo "check_wheel: $image: expected a caption and an answer, found '$caption' and '$answer'" >&2
        exit 1
    fi
done
for command in "inspect emoji-caption --strict" "verify emoji-caption" "inspect shapes-vqa.xattn"; do
    # The name of a bundle that came with the wheel, on a machine that has nothing but the wheel.
    if ! venv/bin/xattn-edge $command >/dev/null; then
        echo "check_wheel: expected 'xattn-edge $command' to work without onnx, found that it fails" >&2
        exit 1
    fi
done
if [ "$added_mb" -gt "$limit_mb" ]; then
    echo "check_wheel: expected at most $limit_mb MB beyond an empty environment, found $added_mb MB" >&2
    exit 1
fi
echo "check_wheel: the wheel answers without torch and onnx, and adds $added_mb MB (at most $limit_mb)"
