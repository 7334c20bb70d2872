"""Products just before a head, without a way around them: what they err goes into the logits whole.

Other layers add to a sum that others add to as well, which makes their errors small beside it. It knows graphs alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from onnx import ModelProto, NodeProto

from xattn_export.quantize.base.layers import Layer, find_layers
from xattn_export.quantize.base.prepare import Constants

__all__ = ["find_exposed"]

# Of all weights of the graph: in float32 such a layer costs next to nothing.
_LARGEST_SHARE = 0.01
_PASSED = frozenset({"Add", "Gelu", "LayerNormalization", "Relu", "Reshape", "Squeeze", "Tanh"})


def find_exposed(model: ModelProto, folder: Path | None = None) -> list[Layer]:
    """Those layers, if they have few weights, of a graph that has been prepared.

    Such as the transform before the head of BERT. folder: where weights lie that are beside the graph.
    """
    layers, constants = find_layers(model, folder), Constants(model.graph, folder)
    products = {layer.given: layer for layer in layers if layer.kind == "product"}
    makers = {name: node for node in model.graph.node for name in node.output}
    most = _LARGEST_SHARE * sum(layer.elements for layer in layers)
    heads = [_behind(output.name, products, makers, constants) for output in model.graph.output]
    found = [_behind(head.found, products, makers, constants) for head in heads if head is not None]
    return [layer for layer in found if layer is not None and layer.elements <= most]


def _behind(
    name: str, products: Mapping[str, Layer], makers: Mapping[str, NodeProto], constants: Constants
) -> Layer | None:
    """The product that `name` comes of by nothing but biases, norms and functions of single values."""
    while name not in products:
        node = makers.get(name)
        if node is None or node.op_type not in _PASSED:
            return None
        computed = [one for one in node.input if one and one not in constants]
        if len(computed) != 1:
            return None
        name = computed[0]
    return products[name]
