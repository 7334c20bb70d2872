#!/usr/bin/env bash
# Installs the wheel with [openvino] into an environment of its own, and compares the OpenVINO provider with the CPU
# provider on this machine: `verify`, `caption` and `vqa` on the default models in fp32 and int8, then the profile of both.
# Wants xattn-edge with [export] on the PATH. Where the package cannot be had, it says so and passes.
set -euo pipefail

checkout=$(cd "$(dirname "$0")/.." && pwd)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
bundles=$work/bundles

python3 -m venv "$work/venv"
python3 -m pip wheel --quiet --no-deps --wheel-dir "$work" "$checkout"
"$work/venv/bin/pip" install --quiet "$(ls "$work"/xattn_edge-*.whl)[openvino]" 2>"$work/log" || {
    echo "check_openvino: skipped: no onnxruntime-openvino to be had: $(tail -n 1 "$work/log")"
    exit 0
}

mkdir "$bundles"
for model in emoji-caption shapes-vqa; do
    fp32=$bundles/$model-fp32.xattn
    xattn-edge export "$checkout/checkpoints/$model" -o "$fp32" --attention decomposed --quiet >/dev/null
    xattn-edge quantize "$fp32" -o "$bundles/$model-int8.xattn" --mode int8 --quiet >/dev/null
done

cd "$work" # the wheel is to be run, not the checkout
for provider in cpu openvino; do
    venv/bin/python "$checkout/scripts/compare_answers.py" ask "$bundles" "$checkout/examples" $provider >$provider.json
done
echo "check_openvino: $(venv/bin/pip list 2>/dev/null | grep onnxruntime-openvino)"
venv/bin/python "$checkout/scripts/compare_answers.py" compare cpu.json openvino.json
for provider in cpu openvino; do
    venv/bin/xattn-edge profile "$bundles"/*.xattn --provider $provider --runs 10
done
echo "check_openvino: the OpenVINO provider answers as the CPU provider does"
