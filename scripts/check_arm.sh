#!/usr/bin/env bash
# Installs the wheel with [cpu] for aarch64 and runs it under emulation, as a Cortex-A72 (Raspberry Pi 4), a Neoverse N1
# and a processor with i8mm: `verify`, `caption` and `vqa` on the default models in fp32, int8 and int4, compared with the
# same wheel on this machine. Emulated time says nothing of speed, so none is reported.
# Wants xattn-edge with [export] on the PATH, and takes qemu-user-static and mmdebstrap from Debian where they are missing.
set -euo pipefail

checkout=$(cd "$(dirname "$0")/.." && pwd)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
root=$work/root site=$work/site bundles=$work/bundles

skip() { echo "check_arm: skipped: $1"; exit 0; }

install_emulation() {
    command -v qemu-aarch64-static mmdebstrap >/dev/null && return
    command -v apt-get >/dev/null || skip "no qemu-aarch64-static and mmdebstrap here, and no apt-get to install them"
    [ "$(id -u)" = 0 ] || skip "no qemu-aarch64-static and mmdebstrap here, and only root may install them"
    { apt-get update -qq && apt-get install -y -qq --no-install-recommends qemu-user-static mmdebstrap; } >/dev/null 2>&1 ||
        skip "qemu-user-static and mmdebstrap cannot be installed from the packages of this system"
}

make_root() { # a Debian of arm64 with Python, and beside it the wheel with what it needs
    mmdebstrap --quiet --variant=extract --architectures=arm64 \
        --include=python3.11-minimal,libpython3.11-stdlib,libstdc++6,libgcc-s1 bookworm "$root" 2>"$work/log" ||
        skip "no Debian of arm64 to be had: $(tail -n 1 "$work/log")"
    python3 -m pip install --quiet --no-compile --only-binary=:all: --implementation cp --python-version 3.11 \
        --platform manylinux_2_28_aarch64 --platform manylinux_2_27_aarch64 --platform manylinux_2_17_aarch64 \
        --platform manylinux2014_aarch64 --target "$site" "$1[cpu]" 2>"$work/log" ||
        skip "no wheels of aarch64 to be had: $(tail -n 1 "$work/log")"
}

make_bundles() {
    mkdir "$bundles"
    for model in emoji-caption shapes-vqa; do
        xattn-edge export "$checkout/checkpoints/$model" -o "$bundles/$model-fp32.xattn" --quiet >/dev/null
        for mode in int8 int4; do
            xattn-edge quantize "$bundles/$model-fp32.xattn" -o "$bundles/$model-$mode.xattn" --mode "$mode" --quiet >/dev/null
        done
        cp -r "$checkout/runtime/xattn_runtime/defaults/$model.xattn" "$bundles/$model-default.xattn"
    done
}

# ONNX Runtime picks kernels by /proc/cpuinfo, which must not be this machine's.
describe_processor() { # PART FEATURES
    mkdir -p "$root/proc"
    for number in $(seq 0 $(($(nproc) - 1))); do
        printf 'processor\t: %d\nBogoMIPS\t: 50.00\nFeatures\t: %s\nCPU implementer\t: 0x41\nCPU architecture: 8\nCPU variant\t: 0x1\nCPU part\t: %s\nCPU revision\t: 1\n\n' "$number" "$2" "$1"
    done >"$root/proc/cpuinfo"
}

check_on() { # NAME QEMU_CPU
    qemu-aarch64-static -cpu "$2" -L "$root" -E PYTHONHOME="$root/usr" -E PYTHONPATH="$site" -E PYTHONDONTWRITEBYTECODE=1 \
        -E LD_LIBRARY_PATH="$root/usr/lib/aarch64-linux-gnu" "$root/usr/bin/python3.11" \
        "$checkout/scripts/compare_answers.py" ask "$bundles" "$checkout/examples" >"$work/there.json"
    echo "check_arm: $1"
    python3 "$checkout/scripts/compare_answers.py" compare "$work/here.json" "$work/there.json"
}

install_emulation
python3 -m pip wheel --quiet --no-deps --wheel-dir "$work" "$checkout"
wheel=$(ls "$work"/xattn_edge-*.whl)
make_root "$wheel"
make_bundles
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet "$wheel[cpu]"
"$work/venv/bin/python" "$checkout/scripts/compare_answers.py" ask "$bundles" "$checkout/examples" >"$work/here.json"

a72="fp asimd evtstrm aes pmull sha1 sha2 crc32 cpuid"
n1="$a72 atomics fphp asimdhp asimdrdm lrcpc dcpop asimddp"
describe_processor 0xd08 "$a72"
check_on "Cortex-A72" cortex-a72
describe_processor 0xd0c "$n1"
check_on "Neoverse N1" neoverse-n1
describe_processor 0xd49 "$n1 asimdfhm i8mm bf16"
check_on "i8mm" max,sve=off,sme=off
echo "check_arm: the wheel answers on aarch64 as it does here"
