"""Which class of Transformers a `config.json` is of, the families that read it, and the nearest of what is known."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

from xattn_export.families.base import Family, Source
from xattn_runtime.bundle.manifest import TaskName

__all__ = ["architecture", "class_of", "nearest", "transformers_family"]

_NEAR = 0.6


def architecture(config: Mapping[str, Any]) -> str | None:
    """The class that a `config.json` of Transformers names, such as `BlipForQuestionAnswering`."""
    stated = config.get("architectures")
    first = stated[0] if isinstance(stated, list) and stated else stated
    return first if isinstance(first, str) and first else None


def class_of(config: Mapping[str, Any], classes: Mapping[str, str], *, by_model_type: bool = True) -> str | None:
    """Which of `classes` the model of a `config.json` is of, or None.

    Args:
        classes: class → the `model_type` that its configuration states.
        by_model_type: whether `model_type` says the class where none is named.
    """
    if (stated := architecture(config)) is not None:
        return stated if stated in classes else None
    of_type = [name for name, model_type in classes.items() if model_type == config.get("model_type")]
    return of_type[0] if by_model_type and of_type else None


def transformers_family(
    name: str,
    open: Callable[[Path], Source],
    classes: Mapping[str, str],
    *,
    also: Mapping[TaskName, Callable[[Path], Source]] = MappingProxyType({}),
    by_model_type: bool = True,
) -> Family:
    """The family of these classes of Transformers; the arguments are those of `Family` and of `class_of`."""

    def recognises(config: Mapping[str, Any]) -> bool:
        return class_of(config, classes, by_model_type=by_model_type) is not None

    return Family(name, recognises, open, also=also, classes=classes)


def nearest(name: str, known: Iterable[str]) -> str | None:
    """The one of `known` that is most like `name`: one that is a part of it, or else of nearly the same letters."""
    plain = _plain(name)

    def likeness(other: str) -> float:
        if not (compared := _plain(other)) or not plain:
            return 0.0
        shorter, longer = sorted((plain, compared), key=len)
        if shorter in longer:
            return _NEAR + len(shorter) / len(longer)
        return difflib.SequenceMatcher(None, plain, compared).ratio()

    best = max(known, key=likeness, default=None)
    return best if best is not None and likeness(best) >= _NEAR else None


def _plain(name: str) -> str:
    return "".join(letter for letter in name.lower() if letter.isalnum())
