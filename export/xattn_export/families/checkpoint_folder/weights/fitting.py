"""Whether weights are those of a model: names, shapes and kinds of numbers, before and after it is loaded."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from xattn_edge.models.wrappers import without_wrappers
from xattn_export.families.checkpoint_folder.weights.quantized import refuse_quantized_tensors
from xattn_runtime.errors import CheckpointError

__all__ = ["check_loaded", "fit_names"]

# Keys that say how many rows a table or a classifier has, which people change.
_COUNT = re.compile("vocab|label")
_UNMERGED = re.compile(r"\.lora_(embedding_)?[AB]\b")


def fit_names(
    folder: Path, config: Mapping[str, Any], expected: Mapping[str, Tensor], tensors: Mapping[str, Tensor]
) -> tuple[dict[str, Tensor], str]:
    """The tensors under the model's names, and the prefix that was taken off for it.

    Args:
        config: the model's configuration, to say what it states of a shape.
        expected: the model's own tensors, without their values: a wrong configuration may ask for any amount of memory.

    Raises:
        CheckpointError: tensors of quantized layers, or of an adapter that is not merged, or of another shape.
    """
    fitting, prefix = without_wrappers(tensors, lambda names: sum(name in expected for name in names))
    if lora := next((name for name in fitting if _UNMERGED.search(name)), None):
        raise CheckpointError(
            f"{folder}: expected the weights of a model, found among them {lora}, of an adapter that is not merged; "
            "call merge_and_unload() of peft before save_pretrained"
        )
    refuse_quantized_tensors(folder, fitting, expected)
    for name, tensor in fitting.items():
        if name in expected and tensor.shape != expected[name].shape:
            raise _mismatch(folder, config, name, tensor.shape, expected[name].shape)
    return fitting, prefix


def check_loaded(
    folder: Path, class_name: str, config: Mapping[str, Any], info: Mapping[str, Any], unused: Sequence[str]
) -> None:
    """CheckpointError where Transformers found a tensor missing, too many, or of another shape.

    unused: regular expressions of tensors that may be either.
    """
    for name, actual, expected in sorted(info["mismatched_keys"]):
        raise _mismatch(folder, config, name, actual, expected)
    for key, words in (("missing_keys", "the tensor"), ("unexpected_keys", "no tensor")):
        names = sorted(name for name in info[key] if not any(re.search(pattern, name) for pattern in unused))
        if names:
            more = f" and {len(names) - 1} more" if len(names) > 1 else ""
            actual = "none" + _first_parts(info["unexpected_keys"]) if key == "missing_keys" else "it"
            raise CheckpointError(
                f"{folder}: expected {words} {names[0]}{more} in the weights of a {class_name}, found "
                f"{actual}; weights and config.json are not of one model"
            )


def _first_parts(names: Sequence[str]) -> str:
    """What the names begin with that are not the model's, for the eye that knows what wrapped it."""
    parts = list(dict.fromkeys(f"{name.partition('.')[0]}.…" for name in sorted(names)))
    return f", but {', '.join(parts[:3])}" if parts else ""


def _mismatch(
    folder: Path, config: Mapping[str, Any], name: str, actual: Sequence[int], expected: Sequence[int]
) -> CheckpointError:
    unless = ""
    if len(actual) == len(expected):
        axes = [axis for axis, (one, other) in enumerate(zip(actual, expected, strict=True)) if one != other]
        stating = [key for key in _stating(config, expected[0]) if axes == [0] and _COUNT.search(key)]
        unless = f", unless {stating[0]} is to be {actual[0]}" if stating else ""
    return CheckpointError(
        f"{folder}: the tensor {name}: expected the shape {list(expected)}, as config.json says, found {list(actual)}; "
        f"weights and config.json are not of one model{unless}"
    )


def _stating(config: Mapping[str, Any], value: int, before: str = "") -> Iterator[str]:
    """The keys of a configuration that have this value."""
    for key, stated in config.items():
        if key == "id2label" and isinstance(stated, dict) and len(stated) == value:
            yield f"{before}the number of names in id2label"
        elif isinstance(stated, dict):
            yield from _stating(stated, value, f"{before}{key}.")
        elif stated == value and not isinstance(stated, bool):
            yield f"{before}{key}"
