"""Weights that are quantized already, known by what their folder says or by their tensors, and what to do instead."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from xattn_export.families.checkpoint_folder.json_files import read_json
from xattn_export.families.checkpoint_folder.weights.files import FULL_PRECISION
from xattn_runtime.errors import CheckpointError
from xattn_runtime.json_reader import show

__all__ = ["refuse_quantized", "refuse_quantized_tensors"]

_METHODS = {
    "aqlm": "AQLM",
    "auto-round": "AutoRound",
    "awq": "AWQ",
    "bitnet": "BitNet",
    "bitsandbytes": "bitsandbytes",
    "compressed-tensors": "compressed-tensors",
    "eetq": "EETQ",
    "fbgemm_fp8": "FP8",
    "fp8": "FP8",
    "gptq": "GPTQ",
    "higgs": "HIGGS",
    "hqq": "HQQ",
    "modelopt": "ModelOpt",
    "mxfp4": "MXFP4",
    "quanto": "Quanto",
    "spqr": "SpQR",
    "torchao": "torchao",
    "vptq": "VPTQ",
}
# Files that say it beside or in place of config.json → the method, where the file does not name it.
_FILES = {"quantize_config.json": "gptq", "quant_config.json": "awq", "hf_quant_config.json": "modelopt"}
# Endings of tensors' names that only quantized layers have, in the order in which they tell.
_ENDINGS = {
    ".SCB": "bitsandbytes",
    ".absmax": "bitsandbytes",
    ".quant_map": "bitsandbytes",
    ".g_idx": "gptq",
    ".qzeros": "awq",
    ".qweight": "gptq",
    ".weight_packed": "compressed-tensors",
    ".weight_scale_inv": "fp8",
    ".weight_scale": "fp8",
}


def refuse_quantized(folder: Path) -> None:
    """CheckpointError where the folder's files say that its weights are quantized."""
    config = read_json(folder / "config.json")
    for key, stated in _stated(config):
        raise _refusal(folder / "config.json", key, _method(stated), config)
    for name, method in _FILES.items():
        if (folder / name).is_file():
            raise _refusal(folder / name, "quant_method", _method({"quant_method": method}), config)


def refuse_quantized_tensors(folder: Path, tensors: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> None:
    """CheckpointError where a tensor is one of a quantized layer, or holds no numbers where the model has some."""
    config = read_json(folder / "config.json")
    for ending, method in _ENDINGS.items():
        if name := next((name for name in tensors if name.endswith(ending) and name not in expected), None):
            raise _refusal(folder, f"the tensor {name}", _METHODS[method], config)
    for name, tensor in tensors.items():
        if name in expected and expected[name].is_floating_point() and tensor.dtype not in FULL_PRECISION:
            raise _refusal(folder, f"the tensor {name}", str(tensor.dtype).removeprefix("torch."), config)


def _stated(config: Mapping[str, Any]) -> Iterator[tuple[str, object]]:
    """Every `quantization_config` of the model or a part of it, with its key."""
    if config.get("quantization_config"):
        yield "quantization_config", config["quantization_config"]
    for key, part in config.items():
        if isinstance(part, dict) and part.get("quantization_config"):
            yield f"{key}.quantization_config", part["quantization_config"]


def _method(stated: object) -> str:
    """The method's own name, with the bits where they are stated."""
    if not isinstance(stated, dict):
        return show(stated)
    name = stated.get("quant_method")
    bits = next((bits for key, bits in (("load_in_4bit", 4), ("load_in_8bit", 8)) if stated.get(key)), None)
    if name is None and bits:
        name = "bitsandbytes"
    plain = str(name).lower().removeprefix("intel/").removesuffix("_4bit").removesuffix("_8bit")
    bits = bits or stated.get("bits") or stated.get("w_bit")
    return _METHODS.get(plain, show(name)) + (f" of {bits} bits" if isinstance(bits, int) else "")


def _refusal(place: Path, key: str, method: str, config: Mapping[str, Any]) -> CheckpointError:
    origin = config.get("_name_or_path")
    made_from = f" ({origin})" if isinstance(origin, str) and origin else ""
    return CheckpointError(
        f"{place}: {key}: expected full-precision weights, found those of {method}; export the checkpoint that "
        f"they were made from{made_from}, or save them again after dequantize() of Transformers, and quantize the "
        "bundle with `xattn-edge quantize`"
    )
