"""The settings of an image processor, in every form that a version of Transformers has written them in.

It knows keys and values, and no processor.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, NoReturn

from xattn_runtime.errors import CheckpointError
from xattn_runtime.json_reader import show
from xattn_runtime.preprocess.steps import LARGEST_SIDE_PX, Filter

__all__ = ["Settings", "Triple"]

Triple = tuple[float, float, float]

_FILTERS: Mapping[int, Filter] = MappingProxyType(
    {0: "nearest", 1: "lanczos", 2: "bilinear", 3: "bicubic", 4: "box", 5: "hamming"}
)
# What Transformers takes every name for.
_FILTER_OF_NAMES: Filter = "bilinear"
_CHANNELS = 3
# Keys that switch an operation on; and those of them that do nothing to the pixels of an image, but to labels or texts.
_SWITCHES = ("do_", "use_square_size")
_WITHOUT_EFFECT = frozenset({"do_basic_tokenize", "do_lower_case", "do_reduce_labels"})
_NOT_TRUE = ("", "0", "false", "no", "none", "null", "off")


class Settings:
    """A configuration: every read names its key and its default, and `finish` refuses an operation that nobody read.

    path: the file, for messages. width_first: whether a list of two sides is width and height.
    """

    def __init__(self, path: Path, values: Mapping[str, Any], *, width_first: bool = False) -> None:
        self.path = path
        self._values = values
        self._width_first = width_first
        self._read: set[str] = set()

    def fail(self, key: str, expected: str, advice: str = "it would change the pixels") -> NoReturn:
        """CheckpointError: what the key should hold, and what to do."""
        raise CheckpointError(f"{self.path}: {key}: expected {expected}, found {show(self._values.get(key))}; {advice}")

    def get(self, key: str) -> Any:
        """The value, None where it is missing or null."""
        self._read.add(key)
        return self._values.get(key)

    def flag(self, key: str, default: bool) -> bool:
        """True or false; as Transformers takes them, a null is false and a text, such as a model's name, is true."""
        if key in self._values and self._values[key] is None:
            default = False
        value = self.get(key)
        if isinstance(value, str) and value.strip().lower() not in _NOT_TRUE:
            return True
        if value is not None and not isinstance(value, bool):
            self.fail(key, "true or false")
        return default if value is None else value

    def integer(self, key: str, default: int) -> int:
        value = default if (stated := self.get(key)) is None else stated
        if not _is_side(value):
            self.fail(key, f"an integer from 1 to {LARGEST_SIDE_PX}")
        return int(value)

    def number(self, key: str, default: float) -> float:
        value = default if (stated := self.get(key)) is None else stated
        if not _is_number(value) or value <= 0:
            self.fail(key, "a number above 0")
        return float(value)

    def triple(self, key: str, default: Triple, *, positive: bool = False) -> Triple:
        """One value per channel; a single number applies to all three."""
        value = default if (stated := self.get(key)) is None else stated
        values = list(value) if isinstance(value, list | tuple) else [value] * _CHANNELS
        if len(values) == 1 and self.get("num_channels") == 1:
            self.fail("num_channels", f"{_CHANNELS}", "models of greyscale images cannot be exported yet")
        if len(values) != _CHANNELS or not all(map(_is_number, values)) or (positive and min(values) <= 0):
            self.fail(key, "3 numbers" + (" above 0" if positive else ""))
        return float(values[0]), float(values[1]), float(values[2])

    def filter(self, default: Filter) -> Filter:
        """Pillow's number of a filter. A name is taken only where it is what Transformers takes every name for."""
        value = self.get("resample")
        if value is None:
            return default
        if isinstance(value, str) and value.rpartition(".")[2].lower() == _FILTER_OF_NAMES:
            return _FILTER_OF_NAMES
        if not isinstance(value, int) or isinstance(value, bool) or value not in _FILTERS:
            numbers = ", ".join(f"{number} ({name})" for number, name in _FILTERS.items())
            advice = "it would change the pixels"
            if isinstance(value, str):
                advice = f"write the number: Transformers takes every name for {_FILTER_OF_NAMES}"
            self.fail("resample", numbers, advice)
        return _FILTERS[value]

    def size(self, key: str, default: Mapping[str, int], *, square: bool) -> dict[str, int]:
        """As `get_size_dict` in image_processing_utils.py: an integer is a square, or else the shortest edge."""
        value = dict(default) if (stated := self.get(key)) is None else stated
        if isinstance(value, list) and len(value) == 2:
            height, width = reversed(value) if self._width_first else value
            value = {"height": height, "width": width}
        elif not isinstance(value, dict):
            value = {"height": value, "width": value} if square else {"shortest_edge": value}
        size = {edge: side for edge, side in value.items() if side is not None}
        if not all(map(_is_side, size.values())):
            self.fail(key, f"sides from 1 to {LARGEST_SIDE_PX}")
        return size

    def area(self, default: Mapping[str, int]) -> tuple[int, int]:
        """The fewest and the most pixels: `min_pixels` and `max_pixels`, or the edges of `size`, which are areas."""
        size = dict(default) if (stated := self.get("size")) is None else stated
        found = []
        for key, edge in (("min_pixels", "shortest_edge"), ("max_pixels", "longest_edge")):
            value = self.get(key)
            if value is None:
                key, value = "size", size.get(edge) if isinstance(size, dict) else None
            if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= LARGEST_SIDE_PX**2:
                limit = f"a number of pixels from 1 to {LARGEST_SIDE_PX**2}"
                self.fail(key, limit if key != "size" else f"shortest_edge and longest_edge, {limit} each")
            found.append(value)
        return found[0], found[1]

    def fixed_size(self, key: str, default: Mapping[str, int]) -> tuple[int, int]:
        """Height and width."""
        size = self.size(key, default, square=True)
        if set(size) != {"height", "width"}:
            self.fail(key, "height and width")
        return size["height"], size["width"]

    def finish(self) -> None:
        """CheckpointError for an operation that is switched on and was not read.

        Any other key that was not read is one that the processor's class in Transformers does not read either.
        """
        for key, value in self._values.items():
            if key.startswith(_SWITCHES) and value and key not in self._read | _WITHOUT_EFFECT:
                raise CheckpointError(
                    f"{self.path}: {key}: expected only settings that are understood, found {show(value)}; "
                    "it may change the pixels: remove it if it does not"
                )


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _is_side(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 1 <= value <= LARGEST_SIDE_PX
