#!/usr/bin/env bash
# Makes the int8 bundles that ship in the wheel from the checkpoints of this repository.
#     scripts/make_defaults.sh [NAME...]
# needs an environment with the [dev] extra and the data of both models. The dates inside are those of the checkpoint's last commit, and the
# commands inside name no folder of this machine, so that the same checkpoint and versions give the same bytes.
set -euo pipefail

checkout=$(cd "$(dirname "$0")/.." && pwd)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cp -r "$checkout/checkpoints" "$work"
cd "$work"
declare -A extra=([emoji-caption]=--with-attention [shapes-vqa]=--with-attention)
declare -A calibration=([emoji-caption]='--data emoji' [shapes-vqa]='--data easy-vqa')
declare -A data=([emoji-caption]=emoji [emoji-retrieval]=emoji [sentiment]=sentiment [shapes-vqa]=easy-vqa)
(($#)) || set -- "${!data[@]}"
for name in "$@"; do
    SOURCE_DATE_EPOCH=$(git -C "$checkout" log -1 --format=%ct -- "checkpoints/$name")
    export SOURCE_DATE_EPOCH
    xattn-edge export "checkpoints/$name" -o "$name.xattn" ${extra[$name]:-}
    xattn-edge quantize "$name.xattn" -o "$name-int8.xattn" --mode int8 ${calibration[$name]:-}
    xattn-edge evaluate "$name-int8.xattn" --data "${data[$name]}" --record
    target="$checkout/runtime/xattn_runtime/defaults/$name.xattn"
    rm -rf "$target"
    cp -r "$name-int8.xattn" "$target"
    xattn-edge verify "$target"
done
