"""What quantization is asked for: modes of graphs and layers, how weights are rounded, how activations are calibrated.

Values only, and the checks that need no graph.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from xattn_export.quantize.base.rounding import ROUNDINGS, Rounding
from xattn_runtime.bundle.manifest import Precision
from xattn_runtime.errors import UserError
from xattn_runtime.json_reader import show

__all__ = [
    "BLOCKS",
    "KEY_VALUE_PRECISIONS",
    "MODES",
    "RANGES",
    "GraphPlan",
    "KeyValuePrecision",
    "Mode",
    "Options",
    "RangeMethod",
    "has_int8_activations",
    "precision_of",
    "session_options",
]

Mode = Literal["fp32", "fp16", "int8", "int8-static", "int8-weight", "int4"]
RangeMethod = Literal["min-max", "entropy", "percentile"]
KeyValuePrecision = Literal["fp32", "fp16", "int8"]

MODES: tuple[Mode, ...] = ("fp32", "fp16", "int8", "int8-static", "int8-weight", "int4")
RANGES: tuple[RangeMethod, ...] = ("min-max", "entropy", "percentile")
KEY_VALUE_PRECISIONS: tuple[KeyValuePrecision, ...] = ("fp32", "fp16", "int8")
BLOCKS = (16, 32, 64, 128)

_PRECISIONS: Mapping[Mode, Precision] = {
    "fp32": "fp32",
    "fp16": "fp16",
    "int8": "int8",
    "int8-static": "int8",
    "int8-weight": "int8",
    "int4": "int4",
}
# Signed weights whose pairs are not kept within bounds, as those of `int8` are, overflow the 16-bit sums of x86 without
# VNNI: there, and only there, the runtime sets this.
_WIDE_SUMS = {"session.x64quantprecision": "1"}
_ACCURACY_LEVEL = "session.qdq_matmulnbits_accuracy_level"
_BLOCKED: tuple[Mode, ...] = ("int8-weight", "int4")


@dataclass(frozen=True)
class Options:
    """How every mode does what it does.

    block: rows that share a scale in `int4` and `int8-weight`. symmetric: whether their blocks go without zero points.
    rounding: how weights of products are rounded. exact_activations: whether products with blocked weights take their
    other factor in float32, rather than in 8 bits, which is twice as fast.
    range_method, percentile: how `int8-static` finds the range of activations.
    smooth: how much of the activations' spread goes over to the weights in `int8`, 0 to 1; 0 leaves them as they are.
    cross, cache: how keys and values of cross-attention, and those of the decoder's cache, go from graph to graph.
    """

    block: int = 32
    symmetric: bool = True
    rounding: Rounding = "fitted"
    exact_activations: bool = False
    range_method: RangeMethod = "min-max"
    percentile: float = 99.99
    smooth: float = 0.0
    cross: KeyValuePrecision = "fp32"
    cache: KeyValuePrecision = "fp32"

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

    def record(self, modes: frozenset[Mode]) -> dict[str, Any]:
        """Those values that matter for `modes`, as JSON values."""
        values: dict[str, Any] = {}
        if modes - {"fp32", "fp16"}:
            values["rounding"] = self.rounding
        if modes.intersection(_BLOCKED):
            values |= {"block": self.block, "symmetric": self.symmetric, "exact_activations": self.exact_activations}
        if "int8-static" in modes:
            values["range"] = self.range_method
            values |= {"percentile": self.percentile} if self.range_method == "percentile" else {}
        if "int8" in modes and self.smooth:
            values["smooth"] = self.smooth
        for name, precision in (("cross", self.cross), ("cache", self.cache)):
            values |= {} if precision == "fp32" else {name: precision}
        return values


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


def precision_of(plan: GraphPlan) -> Precision:
    """The precision that the manifest states: the least of any layer."""
    found = {_PRECISIONS[mode] for mode in plan.modes}
    return next(precision for precision in ("int4", "int8", "fp16", "fp32") if precision in found)


def has_int8_activations(plan: GraphPlan, options: Options) -> bool:
    """Whether the result of a graph depends on activations that are rounded to 8 bits as it runs."""
    exact: frozenset[Mode] = frozenset({"fp32", "fp16", *(_BLOCKED if options.exact_activations else ())})
    return bool(plan.modes - exact)


def session_options(modes: frozenset[Mode], options: Options) -> dict[str, str]:
    """What ONNX Runtime must be told to compute graphs of these modes as they were measured."""
    needed: dict[str, str] = {}
    if "int8-static" in modes:
        needed |= _WIDE_SUMS
    if modes.intersection(_BLOCKED):
        needed[_ACCURACY_LEVEL] = "1" if options.exact_activations else "4"
    return needed
