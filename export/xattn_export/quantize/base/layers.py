"""The layers of a graph that quantization can change, by name.

A layer is a node with constant weights. Its name is the node's, which quantizing keeps, so that it denotes the same
thing in a graph, in its quantized form, and on the command line.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
from onnx import ModelProto, NodeProto, TensorProto

from xattn_export.graph.conformance import all_initializers
from xattn_export.graph.editing import GraphParts, attributes
from xattn_export.graph.stored_weights import WeightFiles, tensor_values
from xattn_runtime.errors import UserError

__all__ = ["FEWEST_WEIGHTS", "Kind", "QuantizableLayer", "check_weights", "find_layers", "layer_name"]

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
class QuantizableLayer:
    """A node with constant weights. input, output: its tensors, other than weights. elements: of its weights."""

    name: str
    kind: Kind
    weights: str
    input: str
    output: str
    elements: int


def layer_name(node: NodeProto) -> str:
    """What `node` is called as a layer."""
    return str(node.name or node.output[0])


def find_layers(graph: GraphParts) -> tuple[QuantizableLayer, ...]:
    """The layers worth quantizing of a graph whose products are prepared, in its order."""
    return tuple(_layers(graph))


def check_weights(model: ModelProto, role: str, files: WeightFiles) -> None:
    """UserError where a weight of the graph of `role` is not finite: bytes would hide that.

    Masks may hold infinities, and nothing but zeros beside them. files: those that weights lie in.
    """
    for tensor in all_initializers(model.graph):
        if tensor.data_type != TensorProto.FLOAT:
            continue
        values = tensor_values(tensor, files)
        is_finite = np.isfinite(values)
        if not is_finite.all() and (np.isnan(values).any() or values[is_finite].any()):
            raise UserError(
                f"{role}: {tensor.name}: expected finite weights, found NaN or infinity; the model itself is damaged: "
                "train or export it again"
            )


def _layers(graph: GraphParts) -> Iterator[QuantizableLayer]:
    constants = graph.constants()
    for node in graph.nodes:
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
            yield QuantizableLayer(layer_name(node), kind, weights, node.input[1 - place], node.output[0], elements)
