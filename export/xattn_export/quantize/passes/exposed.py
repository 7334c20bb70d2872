"""Products just before a head, without a way around them: their errors go into the logits whole.

Other layers add to a sum that others add to as well, which makes their errors small beside it. It knows graphs alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from onnx import NodeProto

from xattn_export.graph.editing import GraphParts
from xattn_export.quantize.base.layers import QuantizableLayer

__all__ = ["find_exposed"]

# Of all weights of the graph: in float32 such a layer costs next to nothing.
_LARGEST_SHARE = 0.01
_PASSED = frozenset({"Add", "Gelu", "LayerNormalization", "Relu", "Reshape", "Squeeze", "Tanh"})


def find_exposed(graph: GraphParts, layers: Sequence[QuantizableLayer]) -> list[QuantizableLayer]:
    """Those of `layers` of `graph`, whose products are prepared, if they have few weights.

    Such as the transform before the head of BERT.
    """
    products = {layer.output: layer for layer in layers if layer.kind == "product"}
    producers = {name: node for node in graph.nodes for name in node.output}
    most = _LARGEST_SHARE * sum(layer.elements for layer in layers)
    heads = [_before(output.name, products, producers, graph) for output in graph.outputs]
    candidates = [_before(head.input, products, producers, graph) for head in heads if head is not None]
    return [layer for layer in candidates if layer is not None and layer.elements <= most]


def _before(
    name: str, products: Mapping[str, QuantizableLayer], producers: Mapping[str, NodeProto], graph: GraphParts
) -> QuantizableLayer | None:
    """The product that `name` comes of by nothing but biases, norms and functions of single values."""
    while name not in products:
        node = producers.get(name)
        if node is None or node.op_type not in _PASSED:
            return None
        computed = [one for one in node.input if one and one not in graph.tensors]
        if len(computed) != 1:
            return None
        name = computed[0]
    return products[name]
