"""The specification of a mode: one row with all its properties."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

from xattn_export.quantize.base.options import Mode, Options
from xattn_export.quantize.base.passing import Pass
from xattn_runtime.bundle.manifest import LOWEST_OPSET, Precision

__all__ = ["BASELINE", "ModeSpec", "Observation"]

BASELINE: Mode = "fp32"
"""The mode that leaves a graph or a layer as it is."""

Observation = Literal["ranges", "channels", "peaks", "magnitudes"]
"""What calibration observes: the range of what goes into layers and out of convolutions; the mean of channels, and
their products where weights are rounded by them; the largest magnitude of channels, where they are smoothed; the
largest magnitude of every tensor."""


def _no_session_options(options: Options) -> Mapping[str, str]:
    return {}


def _is_exact(options: Options) -> bool:
    return False


@dataclass(frozen=True)
class ModeSpec:
    """A mode.

    passes: what is done to a layer, or to the graph, in order. scope: whether layers can have it, beside others of
    other modes, or whole graphs alone, of which any node may stay in fp32. precision: what the manifest states.
    lowest_opset: of ai.onnx that its operators need. observes: what its passes need of calibration; for `ranges` there
    must be data, for the others the golden inputs stand in. options: those of `Options` that matter for it.
    keeps_pre_head: whether layers just before a head stay in fp32 unless they are named. tied_mode: what a product has
    instead whose table is looked up, too; None for the mode itself. milder: the mode of layers that lose too much in
    it. is_searched: whether `auto` tries it. session_options: the ONNX Runtime options to compute as measured.
    rounds_activations: whether answers depend on activations that are rounded to 8 bits as a graph runs.
    """

    name: Mode
    precision: Precision
    passes: tuple[Pass, ...] = ()
    scope: Literal["layer", "graph"] = "layer"
    lowest_opset: int = LOWEST_OPSET["decomposed"]
    observes: frozenset[Observation] = frozenset()
    options: tuple[str, ...] = ()
    keeps_pre_head: bool = False
    tied_mode: Mode | None = None
    milder: Mode = BASELINE
    is_searched: bool = False
    session_options: Callable[[Options], Mapping[str, str]] = _no_session_options
    rounds_activations: Callable[[Options], bool] = _is_exact
