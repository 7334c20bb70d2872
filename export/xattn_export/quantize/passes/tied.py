"""Tied heads: an embedding table that is also, transposed, the factor of the last product is stored once, as bytes.

The product needs it as `[width, vocabulary]`, so that is what is stored, and what is looked up are its columns.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from onnx import ModelProto, NodeProto, TensorProto, helper, shape_inference

from xattn_export.quantize.base.layers import Layer, find_layers, layer_name
from xattn_export.quantize.base.prepare import Constants, attributes, replace_nodes

__all__ = ["TiedPair", "find_tied", "share_tied"]


@dataclass(frozen=True)
class TiedPair:
    """A lookup and a product of the same table. indices_rank: axes of what is looked up."""

    lookup: Layer
    product: Layer
    indices_rank: int


@dataclass(frozen=True)
class _Stored:
    """How a product's weights are stored: `[width, vocabulary]` bytes, scales of columns or blocks, zero points."""

    values: str
    scales: str
    zeros: str | None
    block: int


def find_tied(model: ModelProto, folder: Path | None = None) -> list[TiedPair]:
    """The tied pairs of a graph that has been prepared. `folder`: where weights lie that are beside the graph."""
    layers, constants, ranks = find_layers(model, folder), Constants(model.graph, folder), _ranks(model)
    lookups = [layer for layer in layers if layer.kind == "embedding" and layer.found in ranks]
    products = [layer for layer in layers if layer.kind == "product"]
    return [
        TiedPair(lookup, product, ranks[lookup.found])
        for lookup in lookups
        for product in products
        if _is_turned(lookup, product, constants)
    ]


def share_tied(model: ModelProto, pairs: Collection[TiedPair]) -> int:
    """Look up what the products of `pairs` have stored, their weights as bytes, in place; how many lookups do."""
    graph, constants = model.graph, Constants(model.graph)
    by_name = {layer_name(node): node for node in graph.node}
    makers = {output: node for node in graph.node for output in node.output}
    wanted = {pair.lookup.name: pair for pair in pairs}
    replacements = {
        index: _looked_up(node, wanted[name].indices_rank, stored, constants)
        for index, node in enumerate(graph.node)
        if (name := layer_name(node)) in wanted
        if (stored := _stored(by_name[wanted[name].product.name], makers, constants)) is not None
    }
    replace_nodes(graph, replacements)
    constants.write_back()
    return len(replacements)


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


def _stored(product: NodeProto, makers: Mapping[str, NodeProto], constants: Constants) -> _Stored | None:
    """What `product`, the last node of one, multiplies with; None where that is no constant of bytes."""
    maker = makers.get(product.input[1])
    if product.op_type == "MatMul" and maker is not None and maker.op_type == "DequantizeLinear":
        block = attributes(maker).get("block_size", 0)
        # The zero points of signed bytes are zeros.
        zeros = maker.input[2] if len(maker.input) > 2 and not constants.is_int8(maker.input[0]) else None
        return _Stored(maker.input[0], maker.input[1], zeros, block if isinstance(block, int) else 0)
    if product.op_type == "Mul" and maker is not None:
        sums = makers[makers[product.input[0]].input[0]]
        return _Stored(sums.input[1], maker.input[1], None, 0)
    return None


def _looked_up(node: NodeProto, rank: int, stored: _Stored, constants: Constants) -> list[NodeProto]:
    """Columns `[width, …indices]` as bytes, turned, and times their scales: rows `[…indices, width]` in float32."""
    indices, output = node.input[1], node.output[0]
    nodes: list[NodeProto] = []

    def add(operator: str, inputs: list[str], part: str, **options: object) -> str:
        name = f"{output}_{part}"
        nodes.append(helper.make_node(operator, inputs, [name], name=name, **options))  # type: ignore[arg-type]
        return name

    def columns(table: str, part: str) -> str:
        """`[…indices, rows of the table]`."""
        if len(constants.dims(table)) == 1:
            return add("Unsqueeze", [add("Gather", [table, indices], f"{part}_found"), last], part)
        found = add("Gather", [table, indices], f"{part}_found", axis=1)
        return add("Transpose", [found], part, perm=[*range(1, rank + 1), 0])

    last = constants.add(f"{output}_last", np.array([-1], np.int64))
    values, scales = columns(stored.values, "bytes"), columns(stored.scales, "scale")
    zeros = columns(stored.zeros, "zero") if stored.zeros else None
    width = constants.dims(stored.values)[0]
    if stored.block:
        shape = constants.add(f"{output}_blocks", np.array([0] * rank + [-1, stored.block], np.int64))
        values = add("Reshape", [values, shape], "by_block")
        scales = add("Unsqueeze", [scales, last], "block_scale")
        zeros = add("Unsqueeze", [zeros, last], "block_zero") if zeros else None
    floats = add("Cast", [values], "float", to=TensorProto.FLOAT)
    if zeros:
        floats = add("Sub", [floats, add("Cast", [zeros], "zero_float", to=TensorProto.FLOAT)], "centred")
    if not stored.block:
        return [*nodes, helper.make_node("Mul", [floats, scales], [output], name=node.name)]
    scaled = add("Mul", [floats, scales], "scaled")
    shape = constants.add(f"{output}_rows", np.array([0] * rank + [width], np.int64))
    return [*nodes, helper.make_node("Reshape", [scaled, shape], [output], name=node.name)]
