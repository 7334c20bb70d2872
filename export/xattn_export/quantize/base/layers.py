"""The layers of a graph that quantization can change, by name, and what was observed of what goes into them.

A layer is a node with constant weights. Its name is the node's, which quantizing keeps, so that it stands for the same
thing in a graph, in its quantized form, and on the command line.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto, TensorProto

from xattn_export.graph.conformance import all_initializers
from xattn_export.quantize.base.prepare import Constants, attributes, constant_values
from xattn_export.quantize.base.rounding import Grid, Rounded, Rounding, round_weights
from xattn_runtime.errors import UserError

__all__ = [
    "FEWEST_WEIGHTS",
    "Kind",
    "Layer",
    "Observed",
    "Rounder",
    "check_weights",
    "find_layers",
    "is_chosen",
    "layer_name",
]

Kind = Literal["product", "convolution", "embedding", "recurrence"]

FEWEST_WEIGHTS = 4096
"""Quantizing a smaller layer costs more than it saves."""

_FEWEST_EMBEDDING_WEIGHTS = 16384
_PLACE_OF_WEIGHTS: Mapping[str, tuple[Kind, int, int]] = {
    "MatMul": ("product", 1, 2),
    "Conv": ("convolution", 1, 4),
    "Gather": ("embedding", 0, 2),
    "LSTM": ("recurrence", 1, 3),
    "GRU": ("recurrence", 1, 3),
    "RNN": ("recurrence", 1, 3),
}


@dataclass(frozen=True)
class Layer:
    """A node with constant weights. found, given: the tensors that it takes and gives. elements: of its weights."""

    name: str
    kind: Kind
    weights: str
    found: str
    given: str
    elements: int


@dataclass(frozen=True)
class Observed:
    """What calibration saw in one graph, by the name of a tensor that goes into a layer.

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
class Rounder:
    """Rounds the weights of products, each with what is known of its input.

    shifts: filled as it rounds: what a product gives → how much less that is on average than with the weights as they
    were, float32 `[columns]`.
    """

    rounding: Rounding = "fitted"
    observed: Observed = field(default_factory=Observed)
    shifts: dict[str, NDArray[np.float32]] = field(default_factory=dict)

    def __call__(self, weights: NDArray[np.float32], grid: Grid, found: str, given: str) -> Rounded:
        """`weights` `[rows, columns]` on `grid`; `found` is multiplied with them, and that gives `given`."""
        rounded = round_weights(weights, grid, self.rounding, self.observed.hessians.get(found))
        if (mean := self.observed.means.get(found)) is not None:
            self.shifts[given] = mean @ weights - mean @ rounded.restored()
        return rounded


def layer_name(node: NodeProto) -> str:
    """What `node` is called as a layer."""
    return str(node.name or node.output[0])


def is_chosen(node: NodeProto, only: Collection[str] | None) -> bool:
    """Whether `node` is among the layers `only`, None for all."""
    return only is None or layer_name(node) in only


def find_layers(model: ModelProto, folder: Path | None = None) -> list[Layer]:
    """The layers worth quantizing of a graph that has been prepared, in its order.

    folder: where weights lie that are beside the graph.
    """
    return list(_layers(model, Constants(model.graph, folder)))


def check_weights(model: ModelProto, role: str, folder: Path) -> None:
    """UserError where a weight of the graph of `role` is not finite: bytes would hide that.

    Masks may hold infinities, and nothing but zeros beside them. folder: where weights lie that are beside the graph.
    """
    for tensor in all_initializers(model.graph):
        if tensor.data_type != TensorProto.FLOAT:
            continue
        values = constant_values(tensor, str(folder))
        is_finite = np.isfinite(values)
        if not is_finite.all() and (np.isnan(values).any() or values[is_finite].any()):
            raise UserError(
                f"{role}: {tensor.name}: expected finite weights, found NaN or infinity; the model itself is damaged: "
                "train or export it again"
            )


def _layers(model: ModelProto, constants: Constants) -> Iterator[Layer]:
    for node in model.graph.node:
        if node.op_type not in _PLACE_OF_WEIGHTS:
            continue
        kind, place, rank = _PLACE_OF_WEIGHTS[node.op_type]
        weights = node.input[place]
        if not constants.is_float(weights, rank):
            continue
        fewest = _FEWEST_EMBEDDING_WEIGHTS if kind == "embedding" else FEWEST_WEIGHTS
        if kind == "embedding" and attributes(node).get("axis", 0) != 0:
            continue
        if (elements := constants.elements(weights)) >= fewest:
            yield Layer(layer_name(node), kind, weights, node.input[1 - place], node.output[0], elements)
