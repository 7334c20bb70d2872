"""The weights of a Transformers folder as named tensors: located, checked, and read without running anything in them.

A file is mapped into memory, not copied: a tensor costs memory only when it is worked on. It knows files and tensors,
and no architecture.
"""

from __future__ import annotations

import json
import pickle
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from xattn_runtime.errors import CheckpointError
from xattn_runtime.json_reader import one_line, show, unsafe_path_reason

__all__ = ["FULL_PRECISION", "WeightFiles", "find_weights", "read_tensors"]

FULL_PRECISION = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
"""What weights are that are not quantized."""

# In the order of preference: a pickle only where there is nothing better.
_NAMES = ("model.safetensors", "pytorch_model.bin")
_OTHERS = (
    "tf_model.h5", "flax_model.msgpack", "model.ckpt.index", "adapter_model.safetensors", "adapter_model.bin",
    "*.safetensors", "*.ckpt", "*.pth", "*.gguf", "*.distcp", "pytorch_model_fsdp_*", "global_step*", "*.pt", "*.bin",
)  # fmt: skip
# Of what a pickle holds beside a model's tensors: the keys under which trainers keep these.
_STATES = ("state_dict", "model_state_dict", "model", "module")


@dataclass(frozen=True)
class WeightFiles:
    """The files that hold a model's weights; for several, tensor → name of the file that its index states."""

    files: tuple[Path, ...]
    index: Mapping[str, str] | None = None


def find_weights(folder: Path) -> WeightFiles:
    """The weight files of `folder`: safetensors, else a PyTorch pickle; in one file or in shards with an index.

    Raises:
        CheckpointError: there are none, the index is damaged, or a shard is missing.
    """
    for name in _NAMES:
        if (folder / name).is_file():
            return WeightFiles((folder / name,))
        if (folder / f"{name}.index.json").is_file():
            return _sharded(folder, folder / f"{name}.index.json")
    other = next((path.name for pattern in _OTHERS for path in sorted(folder.glob(pattern))), None)
    present = f"only {other}" if other else "none"
    rename = other is not None and other.endswith(".safetensors") and not other.startswith("adapter_model")
    advice = f"rename it to {_NAMES[0]}, if it is this model's" if rename else "save the model with save_pretrained"
    raise CheckpointError(
        f"{folder}: expected weights ({' or '.join(_NAMES)}, or an index of shards), found {present}; "
        f"{advice}, or download it again"
    )


def read_tensors(weights: WeightFiles) -> dict[str, Tensor]:
    """Every tensor by its name, mapped from the files.

    Raises:
        CheckpointError: a damaged file, a pickle that holds more than tensors, a tensor that the index promises and no
            shard has, or a value that is not finite.
    """
    tensors: dict[str, Tensor] = {}
    for path in weights.files:
        read = _read_safetensors(path) if path.suffix == ".safetensors" else _read_pickle(path)
        if weights.index is not None:
            promised = [name for name, file in weights.index.items() if file == path.name]
            if missing := [name for name in promised if name not in read]:
                raise CheckpointError(
                    f"{path}: expected the tensor {missing[0]}{_and_more(missing)}, as the index says, found none; "
                    "download it again"
                )
        _check_finite(path, read)
        tensors |= read
    return tensors


def _sharded(folder: Path, path: Path) -> WeightFiles:
    try:
        index = json.loads(path.read_text(encoding="utf-8"))["weight_map"]
        names = sorted(set(index.values()))
        unsafe = next((name for name in names if unsafe_path_reason(name) or "/" in name), None)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise CheckpointError(
            f"{path}: expected an index with a weight_map, found: {one_line(error)}; download it again"
        ) from error
    if unsafe is not None or not names:
        raise CheckpointError(f"{path}: weight_map: expected names of files beside it, found {show(unsafe)}")
    if missing := [name for name in names if not (folder / name).is_file()]:
        raise CheckpointError(
            f"{folder}: expected the {len(names)} shards of {path.name}, found no {missing[0]}{_and_more(missing)}; "
            "download it again"
        )
    return WeightFiles(tuple(folder / name for name in names), index)


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(path)
    except (SafetensorError, OSError, ValueError) as error:
        raise CheckpointError(f"{path}: expected safetensors, found: {one_line(error)}; download it again") from error


def _read_pickle(path: Path) -> dict[str, Tensor]:
    try:
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except pickle.UnpicklingError as error:
        raise CheckpointError(
            f"{path}: expected a pickle of nothing but tensors, found one that asks for more: it is not opened, for it "
            "could run any code; ask its author for safetensors"
        ) from error
    except Exception as error:  # a damaged pickle raises whatever its bytes happen to mean
        raise CheckpointError(
            f"{path}: expected PyTorch weights, found: {type(error).__name__}: {one_line(error)[:200]}; "
            "download it again"
        ) from error
    inside = (content.get(key) for key in _STATES) if isinstance(content, Mapping) else ()
    for state in (content, *inside):
        if isinstance(state, Mapping) and state and all(map(_is_tensor, state.items())):
            return dict(state)
    raise CheckpointError(f"{path}: expected tensors by name, found {type(content).__name__} of something else")


def _is_tensor(item: tuple[object, object]) -> bool:
    return isinstance(item[0], str) and isinstance(item[1], Tensor)


def _check_finite(path: Path, tensors: Mapping[str, Tensor]) -> None:
    for name, tensor in tensors.items():
        # A sum is finite only if every term is; the terms are looked at only where it is not.
        is_float = tensor.dtype in FULL_PRECISION
        if is_float and not torch.isfinite(tensor.sum()) and not torch.isfinite(tensor).all():
            raise CheckpointError(
                f"{path}: the tensor {name}: expected finite values, found NaN or infinity; "
                "take a checkpoint from before its training failed"
            )


def _and_more(names: Sequence[str]) -> str:
    return f" and {len(names) - 1} more" if len(names) > 1 else ""
