#!/usr/bin/env bash
# On a machine with an NVIDIA GPU: installs the wheel with [cuda] into an environment of its own, and compares CUDA with
# the CPU on the default models in fp32 and fp16: `verify`, `caption` and `vqa`, then the profile of both. Bundles are
# made here if xattn-edge with [export] is on the PATH; or give a folder of them: check_cuda.sh BUNDLES.
# Copy what it prints, with the card that it names, into docs/providers.md.
set -euo pipefail

checkout=$(cd "$(dirname "$0")/.." && pwd)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
bundles=${1:-$work/bundles}

command -v nvidia-smi >/dev/null || { echo "check_cuda: expected an NVIDIA driver, found no nvidia-smi" >&2; exit 2; }
if [ ! -d "$bundles" ]; then
    mkdir "$bundles"
    for model in emoji-caption shapes-vqa; do
        fp32=$bundles/$model-fp32.xattn
        xattn-edge export "$checkout/checkpoints/$model" -o "$fp32" --quiet >/dev/null
        xattn-edge quantize "$fp32" -o "$bundles/$model-fp16.xattn" --mode fp16 --quiet >/dev/null
    done
fi
bundles=$(cd "$bundles" && pwd)

python3 -m venv "$work/venv"
"$work/venv/bin/pip" wheel --quiet --no-deps --wheel-dir "$work" "$checkout"
"$work/venv/bin/pip" install --quiet "$(ls "$work"/xattn_edge-*.whl)[cuda]"
cd "$work"
echo "check_cuda: $(date -u +%Y-%m-%d), $(nvidia-smi --query-gpu=name,driver_version --format=csv,noheader | head -n 1)"
venv/bin/xattn-edge providers
for bundle in "$bundles"/*.xattn; do
    venv/bin/xattn-edge verify "$bundle" --provider cuda
done
for provider in cpu cuda; do
    venv/bin/python "$checkout/scripts/compare_answers.py" ask "$bundles" "$checkout/examples" $provider >$provider.json
done
venv/bin/python "$checkout/scripts/compare_answers.py" compare cpu.json cuda.json
for provider in cpu cuda; do
    venv/bin/xattn-edge profile "$bundles"/*.xattn --provider $provider
done
echo "check_cuda: CUDA answers as the CPU does"
