"""The table of modes, and what is read from it for several modes at a time."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from graphlib import TopologicalSorter
from itertools import pairwise

from xattn_export.quantize.base.mode_spec import ModeSpec
from xattn_export.quantize.base.options import Mode, Options
from xattn_export.quantize.base.passing import Pass
from xattn_export.quantize.modes.fp16 import FP16
from xattn_export.quantize.modes.fp32 import FP32
from xattn_export.quantize.modes.int4 import INT4
from xattn_export.quantize.modes.int8 import INT8
from xattn_export.quantize.modes.int8_static import INT8_STATIC
from xattn_export.quantize.modes.int8_weight import INT8_WEIGHT
from xattn_runtime.bundle.manifest import PRECISIONS, Precision

__all__ = [
    "MODES",
    "mode_names",
    "option_names",
    "passes_of",
    "precision_of",
    "rounds_activations",
    "searched_modes",
    "session_options",
    "spec_of",
    "specs_of",
]

MODES: tuple[ModeSpec, ...] = (FP32, FP16, INT8, INT8_STATIC, INT8_WEIGHT, INT4)


def mode_names() -> tuple[Mode, ...]:
    """Of all modes."""
    return tuple(spec.name for spec in MODES)


def searched_modes() -> tuple[Mode, ...]:
    """Those that `auto` tries."""
    return tuple(spec.name for spec in MODES if spec.is_searched)


def spec_of(mode: Mode) -> ModeSpec:
    """The row of a mode, which must be one."""
    return next(spec for spec in MODES if spec.name == mode)


def specs_of(modes: Collection[Mode]) -> list[ModeSpec]:
    """The rows of those of `modes` that change something, in the table's order."""
    return [spec for spec in MODES if spec.name in modes and spec.passes]


def passes_of(modes: Collection[Mode]) -> list[Pass]:
    """The passes of a graph in which layers have `modes`: in the order of each mode, and of what says `after`."""
    passes = {one.name: one for spec in specs_of(modes) for one in spec.passes}
    sorter: TopologicalSorter[str] = TopologicalSorter(dict.fromkeys(passes, ()))
    for spec in specs_of(modes):
        for first, second in pairwise(spec.passes):
            sorter.add(second.name, first.name)
    for name, one in passes.items():
        sorter.add(name, *(before for before in one.after if before in passes))
    return [passes[name] for name in sorter.static_order()]


def precision_of(modes: Iterable[Mode]) -> Precision:
    """The precision that the manifest states: the least of any layer."""
    return max((spec_of(mode).precision for mode in modes), key=PRECISIONS.index)


def rounds_activations(modes: Collection[Mode], options: Options) -> bool:
    """Whether the result of a graph depends on activations that are rounded to 8 bits as it runs."""
    return any(spec.rounds_activations(options) for spec in specs_of(modes))


def session_options(modes: Collection[Mode], options: Options) -> dict[str, str]:
    """The ONNX Runtime options to compute graphs of these modes as they were measured."""
    return {name: value for spec in specs_of(modes) for name, value in spec.session_options(options).items()}


def option_names(modes: Collection[Mode]) -> list[str]:
    """Of the options that matter for `modes`."""
    return [name for spec in specs_of(modes) for name in spec.options]
