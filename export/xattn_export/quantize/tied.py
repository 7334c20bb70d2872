"""Tied heads: an embedding table that is also, transposed, the factor of the last product is stored once, as bytes.

The product needs it as `[width, vocabulary]`, so that is what is stored, and what is looked up are its columns.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path

import numpy as np
from onnx import ModelProto, NodeProto, TensorProto, helper, shape_inference

from xattn_export.quantize.layers import Layer, Rounder, find_layers, layer_name
from xattn_export.quantize.prepare import Constants, replace_nodes
from xattn_export.quantize.products import COLUMNS, integer_product

__all__ = ["share_tied"]


def share_tied(model: ModelProto, folder: Path | None = None, *, only: Collection[str] | None = None) -> set[str]:
    """Store tied tables once as int8 with a scale a word, and compute their products in int8, in place.

    The names of the layers that this took care of, lookups and products. `only`: layers that may be changed; a pair is
    if both may. `folder`: where weights lie that are beside the graph.
    """
    graph = model.graph
    constants = Constants(graph, folder)
    pairs = _pairs([layer for layer in find_layers(model, folder) if only is None or layer.name in only], constants)
    if not pairs:
        return set()
    ranks = _ranks(model)
    replacements: dict[int, list[NodeProto]] = {}
    shared: dict[str, tuple[str, str]] = {}
    done: set[str] = set()
    for index, node in enumerate(graph.node):
        name = layer_name(node)
        if name not in pairs or (rank := ranks.get(pairs[name].lookup.found)) is None:
            continue
        product = pairs[name].product
        if product.weights not in shared:
            rounded = Rounder()(constants.values(product.weights), COLUMNS, "")
            values = constants.add(f"{product.weights}_int8", rounded.values.astype(np.int8))
            shared[product.weights] = values, constants.add(f"{product.weights}_scale", rounded.scales[0])
        values, scales = shared[product.weights]
        is_lookup = node.op_type == "Gather"
        replacements[index] = (
            _looked_up(node, values, scales, rank) if is_lookup else _product(node, values, scales, constants)
        )
        done.add(name)
    replace_nodes(graph, replacements)
    constants.write_back()
    return done


class _Pair:
    """A lookup and a product of the same table."""

    def __init__(self, lookup: Layer, product: Layer) -> None:
        self.lookup = lookup
        self.product = product


def _pairs(layers: Collection[Layer], constants: Constants) -> Mapping[str, _Pair]:
    """Name of a lookup or product → the two that share a table."""
    found = {}
    for lookup in layers:
        for product in layers:
            if lookup.kind == "embedding" and product.kind == "product" and _is_turned(lookup, product, constants):
                found[lookup.name] = found[product.name] = _Pair(lookup, product)
    return found


def _is_turned(lookup: Layer, product: Layer, constants: Constants) -> bool:
    if constants.dims(lookup.weights) != constants.dims(product.weights)[::-1]:
        return False
    return bool(np.array_equal(constants.values(lookup.weights), constants.values(product.weights).T))


def _ranks(model: ModelProto) -> dict[str, int]:
    """Tensor → number of axes, where it is known."""
    graph = shape_inference.infer_shapes(model).graph
    values = (*graph.input, *graph.value_info, *graph.output)
    known = (value for value in values if value.type.tensor_type.HasField("shape"))
    return {value.name: len(value.type.tensor_type.shape.dim) for value in known}


def _looked_up(node: NodeProto, values: str, scales: str, rank: int) -> list[NodeProto]:
    """Columns `[width, …indices]` as bytes, their scales `[…indices]`, and the rows `[…indices, width]` in float32."""
    indices, output = node.input[1], node.output[0]
    columns, scale, as_float, scaled = (f"{output}_{part}" for part in ("bytes", "row_scale", "row_float", "columns"))
    return [
        helper.make_node("Gather", [values, indices], [columns], name=columns, axis=1),
        helper.make_node("Gather", [scales, indices], [scale], name=scale, axis=0),
        helper.make_node("Cast", [columns], [as_float], name=as_float, to=TensorProto.FLOAT),
        helper.make_node("Mul", [as_float, scale], [scaled], name=scaled),
        helper.make_node("Transpose", [scaled], [output], name=node.name, perm=[*range(1, rank + 1), 0]),
    ]


def _product(node: NodeProto, values: str, scales: str, constants: Constants) -> list[NodeProto]:
    found, output = node.input[0], node.output[0]
    quantized = f"{output}_bytes", f"{output}_bytes_scale", f"{output}_bytes_zero_point"
    zero = constants.add(f"{values}_zero_point", np.zeros((), np.int8))
    quantize = helper.make_node("DynamicQuantizeLinear", [found], list(quantized), name=quantized[0])
    return [quantize, *integer_product(quantized, (values, scales, zero), output, output, node.name)]
