"""Dynamic int8 products: `MatMul` with a constant becomes `DynamicQuantizeLinear` and `MatMulInteger`.

What is written is what `quantize_dynamic` of ONNX Runtime writes (its operators fuse it into one kernel), a weight at a
time: that one needs the whole model in memory, and in one protobuf message of at most 2 GB.
https://onnxruntime.ai/docs/performance/model-optimizations/quantization.html
"""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

import numpy as np
from onnx import ModelProto, NodeProto, TensorProto, helper

from xattn_export.quantize.base.layers import FEWEST_WEIGHTS, Rounder, is_chosen
from xattn_export.quantize.base.prepare import Constants, replace_nodes
from xattn_export.quantize.base.rounding import Grid

__all__ = ["COLUMNS", "integer_product", "quantize_products"]

COLUMNS = Grid(8, 0, paired=True)
"""Signed bytes, a scale a column, whose products x86 processors without VNNI sum exactly at full speed, too."""


def quantize_products(
    model: ModelProto,
    folder: Path | None = None,
    *,
    rounder: Rounder | None = None,
    only: Collection[str] | None = None,
) -> int:
    """Compute large constant products in int8, a scale a column, in place; how many.

    Weights are signed and symmetric: ARM's dot product and x86's VNNI both take them at full speed. Processors with
    neither sum pairs of products in 16 bits, which these weights keep within. `folder`: where weights lie that are
    beside the graph. `only`: the layers to change, by name.
    """
    graph = model.graph
    constants = Constants(graph, folder)
    rounder = rounder or Rounder()
    quantized: dict[str, tuple[str, str, str]] = {}
    factors: dict[str, tuple[str, str]] = {}
    replacements: dict[int, list[NodeProto]] = {}
    for index, node in enumerate(graph.node):
        if node.op_type != "MatMul" or not constants.is_float(node.input[1], 2) or not is_chosen(node, only):
            continue
        found, name = node.input
        if constants.elements(name) < FEWEST_WEIGHTS:
            continue
        added: list[NodeProto] = []
        if found not in quantized:
            quantized[found] = f"{found}_bytes", f"{found}_bytes_scale", f"{found}_bytes_zero_point"
            added.append(
                helper.make_node("DynamicQuantizeLinear", [found], list(quantized[found]), name=f"{found}_bytes")
            )
        if name not in factors:
            rounded = rounder(constants.values(name), COLUMNS, found, node.output[0])
            values = constants.add(f"{name}_int8", rounded.values.astype(np.int8))
            factors[name] = values, constants.add(f"{name}_scale", rounded.scales[0])
        weight, weight_scale = factors[name]
        weight_zero = constants.add(f"{weight}_zero_point", np.zeros((), np.int8))
        output, factor = node.output[0], (weight, weight_scale, weight_zero)
        replacements[index] = [*added, *integer_product(quantized[found], factor, output, output, node.name)]
    replace_nodes(graph, replacements)
    constants.write_back()
    return len(replacements)


def integer_product(
    found: tuple[str, str, str], factor: tuple[str, str, str], stem: str, output: str, name: str
) -> list[NodeProto]:
    """Sums in int32, and their scale, the input's times the column's, to float32 `output` of a node `name`.

    found, factor: values, scale and zero point of the input and of the weights. stem: what names between begin with.
    """
    values, scale, zero = found
    weight, weight_scale, weight_zero = factor
    total, as_float, product = f"{stem}_sum", f"{stem}_float", f"{stem}_scale"
    return [
        helper.make_node("MatMulInteger", [values, weight, zero, weight_zero], [total], name=f"{name}_sum"),
        helper.make_node("Cast", [total], [as_float], name=f"{name}_float", to=TensorProto.FLOAT),
        helper.make_node("Mul", [scale, weight_scale], [product], name=f"{name}_scale"),
        helper.make_node("Mul", [as_float, product], [output], name=name),
    ]
