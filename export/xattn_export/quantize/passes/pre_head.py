"""Finds the layers just before a head that no residual connection bypasses: their errors reach the logits undamped.

Other layers add to a residual sum, beside which their errors are small. It knows graphs alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from onnx import NodeProto

from xattn_export.graph.editing import GraphParts
from xattn_export.quantize.base.layers import QuantizableLayer

__all__ = ["find_pre_head_layers"]

# Of all weights of the graph: in float32 such a layer costs next to nothing.
_LARGEST_SHARE = 0.01
_PASSED = frozenset({"Add", "Gelu", "LayerNormalization", "Relu", "Reshape", "Squeeze", "Tanh"})


def find_pre_head_layers(graph: GraphParts, layers: Sequence[QuantizableLayer]) -> list[QuantizableLayer]:
    """Those of `layers` that feed a head of `graph` without a residual connection and have few weights.

    An example is the transform before the head of BERT. The products of `graph` are prepared.
    """
    products = {layer.output: layer for layer in layers if layer.kind == "product"}
    producers = {name: node for node in graph.nodes for name in node.output}
    limit = _LARGEST_SHARE * sum(layer.elements for layer in layers)
    heads = [_before(output.name, products, producers, graph) for output in graph.outputs]
    candidates = [_before(head.input, products, producers, graph) for head in heads if head is not None]
    return [layer for layer in candidates if layer is not None and layer.elements <= limit]


def _before(
    name: str, products: Mapping[str, QuantizableLayer], producers: Mapping[str, NodeProto], graph: GraphParts
) -> QuantizableLayer | None:
    """The product that `name` is computed from by biases, norms and elementwise functions alone, if any."""
    while name not in products:
        node = producers.get(name)
        if node is None or node.op_type not in _PASSED:
            return None
        computed = [one for one in node.input if one and one not in graph.tensors]
        if len(computed) != 1:
            return None
        name = computed[0]
    return products[name]
