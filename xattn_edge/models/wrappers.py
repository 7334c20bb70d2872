"""Names of tensors without what wrapped the model in training: `module.`, `_orig_mod.`, `model.`, `student.`, …

It knows names, and no model: which names are right, its caller says.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from typing import TypeVar

__all__ = ["without_wrappers"]

_Tensor = TypeVar("_Tensor")

# Modules that torch puts around a module wherever it is compiled, sharded or recomputed.
_INSIDE = ("_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module")


def without_wrappers(
    tensors: Mapping[str, _Tensor], likeness: Callable[[Collection[str]], int]
) -> tuple[dict[str, _Tensor], str]:
    """The tensors under the names that are most like the model's, and what was taken off for it, if anything.

    Args:
        likeness: how many of some names the model has.
    """
    best, taken, most = dict(tensors), "", likeness(tensors.keys())
    for prefix, names in _readings(list(tensors)):
        if len(set(names)) == len(names) and (count := likeness(names)) > most:
            best, taken, most = dict(zip(names, tensors.values(), strict=True)), prefix, count
    return best, taken


def _readings(names: list[str]) -> Iterator[tuple[str, list[str]]]:
    """Ways to read the names: what is taken off, and what remains; the least first."""
    bare = [".".join(part for part in name.split(".") if part not in _INSIDE) for name in names]
    inside = [f"{part}." for part in _INSIDE if any(part in name.split(".") for name in names)]
    for wrapped, begun in ((names, ""), *([(bare, "".join(inside))] if inside else [])):
        if begun:
            yield begun, wrapped
        prefix = ""
        while wrapped and (first := _common_first(wrapped)):
            prefix, wrapped = prefix + first, [name[len(first) :] for name in wrapped]
            yield (prefix if not begun else f"{begun} and {prefix}"), wrapped


def _common_first(names: list[str]) -> str:
    """The first part of a name, with its dot, where all have the same and something behind it."""
    first, dot, _ = names[0].partition(".")
    begin = first + dot
    return begin if dot and all(name.startswith(begin) and len(name) > len(begin) for name in names) else ""
