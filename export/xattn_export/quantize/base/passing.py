"""What a pass is: a function from a graph on its way to the next one. Modes are lists of them."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from xattn_export.graph.editing import GraphParts
from xattn_export.quantize.base.layers import Kind, QuantizableLayer
from xattn_export.quantize.base.options import Options
from xattn_export.quantize.base.rounding import Grid, Rounded, round_weights

__all__ = ["COUNTS", "Assignment", "Draft", "Observed", "Pass", "TiedPair", "round_product"]

COUNTS: Mapping[str, str] = {
    "int4_products": "products of which only the weights are of 4 bits",
    "int8_weight_products": "products of which only the weights are of 8 bits",
    "int8_products": "products computed in int8, ranges as they come",
    "static_products": "products computed in int8, ranges fixed",
    "int8_convolutions": "convolutions computed in int8, ranges as they come",
    "static_convolutions": "convolutions computed in int8, ranges fixed",
    "int8_stored_convolutions": "convolutions stored as int8, computed in float32",
    "int8_embeddings": "embeddings stored as int8",
    "int8_recurrences": "recurrent layers stored as int8, computed in float32",
    "tied_tables": "embeddings stored once with the product that they are also the factor of",
    "corrected_biases": "biases of products that make up for rounded weights",
    "fp16_nodes": "nodes computed in half precision",
}
"""What a report counts, in its order; a pass may count something else, which comes after these."""


@dataclass(frozen=True)
class Observed:
    """What calibration observed in one graph, by the name of a tensor that goes into a layer.

    ranges: the least and greatest value that is to be represented. hessians: mean product of two channels, float32
    `[channels, channels]`. peaks: the largest magnitude of each channel, float32 `[channels]`. means: what a channel is
    on average, float32 `[channels]`.
    """

    ranges: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    hessians: Mapping[str, NDArray[np.float32]] = field(default_factory=dict)
    peaks: Mapping[str, NDArray[np.float32]] = field(default_factory=dict)
    means: Mapping[str, NDArray[np.float32]] = field(default_factory=dict)

    def without_hessians(self, names: Collection[str]) -> Observed:
        """The same, but that nothing is known of products of channels of `names`."""
        return replace(self, hessians={name: one for name, one in self.hessians.items() if name not in names})


@dataclass(frozen=True)
class TiedPair:
    """A lookup and a product of the same table. indices_rank: axes of what is looked up."""

    lookup: QuantizableLayer
    product: QuantizableLayer
    indices_rank: int


@dataclass(frozen=True)
class Draft:
    """A graph between two passes.

    observed: of its tensors as they are by now. float_nodes: nodes that must stay in float32, by name. shifts: output
    of a product → how much less that is on average than with the weights as they were, float32 `[columns]`. counts:
    what has become of how many layers, by the names of `COUNTS`.
    """

    graph: GraphParts
    observed: Observed = field(default_factory=Observed)
    float_nodes: frozenset[str] = frozenset()
    shifts: Mapping[str, NDArray[np.float32]] = field(default_factory=dict)
    counts: Mapping[str, int] = field(default_factory=dict)

    def after(self, graph: GraphParts, shifts: Mapping[str, NDArray[np.float32]] | None = None, **counts: int) -> Draft:
        """The draft after a pass that made `graph`: with its `shifts`, and its `counts` added."""
        totals = {**self.counts, **{name: self.counts.get(name, 0) + count for name, count in counts.items()}}
        return replace(self, graph=graph, shifts={**self.shifts, **(shifts or {})}, counts=totals)


@dataclass(frozen=True)
class Assignment:
    """What a pass is to do. layers: those to change. tied: all pairs of the graph whose table is stored once."""

    layers: tuple[QuantizableLayer, ...] = ()
    options: Options = field(default_factory=Options)
    tied: tuple[TiedPair, ...] = ()

    def names(self, *kinds: Kind) -> frozenset[str]:
        """Those of the layers, of one of `kinds` if there are any."""
        return frozenset(layer.name for layer in self.layers if not kinds or layer.kind in kinds)


@dataclass(frozen=True)
class Pass:
    """A pass by its name. after: names of passes that come before it in a graph of several modes, if it has them."""

    name: str
    run: Callable[[Draft, Assignment], Draft]
    after: tuple[str, ...] = ()


def round_product(
    weights: NDArray[np.float32], grid: Grid, options: Options, observed: Observed, source: str
) -> tuple[Rounded, NDArray[np.float32] | None]:
    """`weights` `[rows, columns]` on `grid`, and how much less the product is on average, float32 `[columns]`.

    source: the tensor that is multiplied with them. The shift is None where the mean of that is not known.
    """
    rounded = round_weights(weights, grid, options.rounding, observed.hessians.get(source))
    mean = observed.means.get(source)
    return rounded, None if mean is None else mean @ weights - mean @ rounded.restored()
