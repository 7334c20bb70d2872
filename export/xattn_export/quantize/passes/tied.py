"""Tied heads: an embedding table that is also, transposed, the factor of the last product is stored once, as bytes.

The product needs it as `[width, vocabulary]`, so that is what is stored, and what is looked up are its columns.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from onnx import NodeProto, TensorProto, shape_inference

from xattn_export.graph.editing import Constants, GraphParts, GraphWriter, attributes
from xattn_export.quantize.base.layers import QuantizableLayer, layer_name
from xattn_export.quantize.base.passing import Assignment, Draft, Pass, TiedPair

__all__ = ["SHARE_TIED", "find_tied", "share_tied"]


@dataclass(frozen=True)
class _StoredTable:
    """How a product's weights are stored: `[width, vocabulary]` bytes, scales of columns or blocks, zero points."""

    values: str
    scales: str
    zeros: str | None
    block: int


def find_tied(graph: GraphParts, layers: Sequence[QuantizableLayer]) -> tuple[TiedPair, ...]:
    """The tied pairs among `layers` of a graph whose products are prepared."""
    lookups = [layer for layer in layers if layer.kind == "embedding"]
    products = [layer for layer in layers if layer.kind == "product"]
    if not lookups or not products:
        return ()
    constants, ranks = graph.constants(), _ranks(graph)
    return tuple(
        TiedPair(lookup, product, ranks[lookup.input])
        for lookup in lookups
        for product in products
        if lookup.input in ranks and _is_transposed(lookup, product, constants)
    )


def share_tied(draft: Draft, assignment: Assignment) -> Draft:
    """Look up what the products of tied pairs have stored, their weights as bytes."""
    writer = GraphWriter(draft.graph.constants())
    by_name = {layer_name(node): node for node in draft.graph.nodes}
    producers = {output: node for node in draft.graph.nodes for output in node.output}
    pairs = {pair.lookup.name: pair for pair in assignment.tied}
    count = 0
    for node in draft.graph.nodes:
        pair = pairs.get(layer_name(node))
        stored = None if pair is None else _stored(by_name[pair.product.name], producers, writer.constants)
        if pair is None or stored is None:
            writer.keep(node)
            continue
        _write_lookup(node, pair.indices_rank, stored, writer)
        count += 1
    return draft.after(draft.graph.rewritten(writer), tied_tables=count, int8_embeddings=count)


SHARE_TIED = Pass("share_tied", share_tied)


def _is_transposed(lookup: QuantizableLayer, product: QuantizableLayer, constants: Constants) -> bool:
    """Whether the weights of `product` are the table of `lookup`, transposed."""
    if constants.dims(lookup.weights) != constants.dims(product.weights)[::-1]:
        return False
    return bool(np.array_equal(constants.values(lookup.weights), constants.values(product.weights).T))


def _ranks(graph: GraphParts) -> dict[str, int]:
    """Tensor → number of axes, where it is known."""
    inferred = shape_inference.infer_shapes(graph.outline()).graph
    values = (*inferred.input, *inferred.value_info, *inferred.output)
    known = (value for value in values if value.type.tensor_type.HasField("shape"))
    return {value.name: len(value.type.tensor_type.shape.dim) for value in known}


def _stored(product: NodeProto, producers: Mapping[str, NodeProto], constants: Constants) -> _StoredTable | None:
    """What `product`, the last node of one, multiplies with; None where that is no constant of bytes."""
    producer = producers.get(product.input[1])
    if product.op_type == "MatMul" and producer is not None and producer.op_type == "DequantizeLinear":
        block = attributes(producer).get("block_size", 0)
        # The zero points of signed bytes are zeros.
        zeros = producer.input[2] if len(producer.input) > 2 and not constants.is_int8(producer.input[0]) else None
        return _StoredTable(producer.input[0], producer.input[1], zeros, block if isinstance(block, int) else 0)
    if product.op_type == "Mul" and producer is not None:
        sums = producers[producers[product.input[0]].input[0]]
        return _StoredTable(sums.input[1], producer.input[1], None, 0)
    return None


def _write_lookup(node: NodeProto, rank: int, stored: _StoredTable, writer: GraphWriter) -> None:
    """Columns `[width, …indices]` as bytes, transposed, times their scales: rows `[…indices, width]` in float32."""
    indices, output = node.input[1], node.output[0]

    def add(operator: str, inputs: list[str], part: str, **options: Any) -> str:
        return writer.node(operator, inputs, f"{output}_{part}", **options)

    def columns(table: str, part: str) -> str:
        """`[…indices, rows of the table]`."""
        if len(writer.constants.dims(table)) == 1:
            return add("Unsqueeze", [add("Gather", [table, indices], f"{part}_found"), last], part)
        gathered = add("Gather", [table, indices], f"{part}_found", axis=1)
        return add("Transpose", [gathered], part, perm=[*range(1, rank + 1), 0])

    last = writer.constants.add(f"{output}_last", np.array([-1], np.int64))
    values, scales = columns(stored.values, "bytes"), columns(stored.scales, "scale")
    zeros = columns(stored.zeros, "zero") if stored.zeros else None
    width = writer.constants.dims(stored.values)[0]
    if stored.block:
        shape = writer.constants.add(f"{output}_blocks", np.array([0] * rank + [-1, stored.block], np.int64))
        values = add("Reshape", [values, shape], "by_block")
        scales = add("Unsqueeze", [scales, last], "block_scale")
        zeros = add("Unsqueeze", [zeros, last], "block_zero") if zeros else None
    floats = add("Cast", [values], "float", to=TensorProto.FLOAT)
    if zeros:
        floats = add("Sub", [floats, add("Cast", [zeros], "zero_float", to=TensorProto.FLOAT)], "centred")
    if not stored.block:
        writer.node("Mul", [floats, scales], output, node.name)
        return
    scaled = add("Mul", [floats, scales], "scaled")
    shape = writer.constants.add(f"{output}_rows", np.array([0] * rank + [width], np.int64))
    writer.node("Reshape", [scaled, shape], output, node.name)
