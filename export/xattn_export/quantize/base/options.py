"""Options of quantization: how weights are rounded, how activations are calibrated, which graph has which mode.

Values only, and the checks that need no graph. Modes themselves are in `quantize/modes/`.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from xattn_export.quantize.base.rounding import ROUNDINGS, Rounding
from xattn_runtime.errors import UserError
from xattn_runtime.json_reader import show

__all__ = [
    "BLOCKS",
    "KEY_VALUE_PRECISIONS",
    "RANGES",
    "GraphPlan",
    "KeyValuePrecision",
    "Mode",
    "Options",
    "RangeMethod",
]

Mode = str
"""The name of a row of the table of modes."""
RangeMethod = Literal["min-max", "entropy", "percentile"]
KeyValuePrecision = Literal["fp32", "fp16", "int8"]

RANGES: tuple[RangeMethod, ...] = ("min-max", "entropy", "percentile")
KEY_VALUE_PRECISIONS: tuple[KeyValuePrecision, ...] = ("fp32", "fp16", "int8")
BLOCKS = (16, 32, 64, 128)

# Under which name an option stands in records, where it is another one.
_RECORDED = {"range_method": "range"}


@dataclass(frozen=True)
class Options:
    """How every mode does what it does.

    rounding: how weights of products are rounded. block: rows that share a scale in `int4` and `int8-weight`.
    symmetric: whether their blocks go without zero points. exact_activations: whether products with blocked weights
    take their other factor in float32, rather than in 8 bits, which is twice as fast.
    range_method, percentile: how `int8-static` finds the range of activations.
    smooth: how much of the activations' spread goes over to the weights in `int8`, 0 to 1; 0 leaves them as they are.
    cross, cache: how keys and values of cross-attention, and those of the decoder's cache, go from graph to graph.
    """

    rounding: Rounding = "fitted"
    block: int = 32
    symmetric: bool = True
    exact_activations: bool = False
    range_method: RangeMethod = "min-max"
    percentile: float = 99.99
    smooth: float = 0.0
    cross: KeyValuePrecision = "fp32"
    cache: KeyValuePrecision = "fp32"

    @property
    def key_values(self) -> dict[str, KeyValuePrecision]:
        """Option → precision, of keys and values that are not to stay in fp32."""
        both: dict[str, KeyValuePrecision] = {"cross": self.cross, "cache": self.cache}
        return {name: precision for name, precision in both.items() if precision != "fp32"}

    def check(self) -> None:
        """UserError where a value is out of its range."""
        if self.block not in BLOCKS:
            raise UserError(f"block: expected one of {', '.join(map(str, BLOCKS))}, found {show(self.block)}")
        if self.rounding not in ROUNDINGS:
            raise UserError(f"rounding: expected one of {', '.join(ROUNDINGS)}, found {show(self.rounding)}")
        if self.range_method not in RANGES:
            raise UserError(f"range: expected one of {', '.join(RANGES)}, found {show(self.range_method)}")
        if not 90 <= self.percentile <= 100:
            raise UserError(f"percentile: expected 90 to 100, found {show(self.percentile)}")
        if not 0 <= self.smooth <= 1:
            raise UserError(f"smooth: expected 0 to 1, found {show(self.smooth)}")
        for name, precision in (("cross", self.cross), ("cache", self.cache)):
            if precision not in KEY_VALUE_PRECISIONS:
                raise UserError(f"{name}: expected one of {', '.join(KEY_VALUE_PRECISIONS)}, found {show(precision)}")

    def record(self, names: Collection[str]) -> dict[str, Any]:
        """The options `names`, and those of keys and values, as JSON values; those that do nothing left out."""
        left_out = {name for name in ("smooth",) if not getattr(self, name)}
        left_out |= {"percentile"} if self.range_method != "percentile" else set()
        fields = {*names, *self.key_values} - left_out
        return {_RECORDED.get(name, name): getattr(self, name) for name in self.__dataclass_fields__ if name in fields}


@dataclass(frozen=True)
class GraphPlan:
    """The mode of a graph, and of those of its layers, by name, that are to have another."""

    mode: Mode
    layers: Mapping[str, Mode] = field(default_factory=dict)

    def mode_of(self, layer: str) -> Mode:
        """The mode of the layer of this name."""
        return self.layers.get(layer, self.mode)

    @property
    def modes(self) -> frozenset[Mode]:
        """All modes in it."""
        return frozenset((self.mode, *self.layers.values()))
