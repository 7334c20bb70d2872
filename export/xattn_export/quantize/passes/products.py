"""Dynamic int8 products: `MatMul` with a constant becomes `DynamicQuantizeLinear` and `MatMulInteger`.

What is written is what `quantize_dynamic` of ONNX Runtime writes (its operators fuse it into one kernel), a weight at a
time: that one needs the whole model in memory, and in one protobuf message of at most 2 GB.
https://onnxruntime.ai/docs/performance/model-optimizations/quantization.html
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from onnx import TensorProto, helper

from xattn_export.graph.editing import GraphWriter
from xattn_export.quantize.base.layers import layer_name
from xattn_export.quantize.base.passing import Assignment, Draft, Pass, round_product
from xattn_export.quantize.base.rounding import Grid

__all__ = ["COLUMNS", "QUANTIZE_PRODUCTS", "quantize_products", "write_integer_product"]

COLUMNS = Grid(8, 0, paired=True)
"""Signed bytes, a scale a column, whose products x86 processors without VNNI sum exactly at full speed, too."""


def quantize_products(draft: Draft, assignment: Assignment) -> Draft:
    """Compute constant products in int8, a scale a column.

    Weights are signed and symmetric: ARM's dot product and x86's VNNI both take them at full speed. Processors with
    neither sum pairs of products in 16 bits, which these weights keep within.
    """
    names, writer = assignment.names("product"), GraphWriter(draft.graph.constants())
    constants = writer.constants
    quantized: dict[str, tuple[str, str, str]] = {}
    factors: dict[str, tuple[str, str]] = {}
    shifts: dict[str, NDArray[np.float32]] = {}
    count = 0
    for node in draft.graph.nodes:
        if node.op_type != "MatMul" or layer_name(node) not in names or not constants.is_float(node.input[1], 2):
            writer.keep(node)
            continue
        (source, name), output = node.input, node.output[0]
        if source not in quantized:
            quantized[source] = f"{source}_bytes", f"{source}_bytes_scale", f"{source}_bytes_zero_point"
            outputs = list(quantized[source])
            writer.keep(helper.make_node("DynamicQuantizeLinear", [source], outputs, name=outputs[0]))
        if name not in factors:
            weights = constants.values(name)
            rounded, shift = round_product(weights, COLUMNS, assignment.options, draft.observed, source)
            shifts |= {} if shift is None else {output: shift}
            values = constants.add(f"{name}_int8", rounded.values.astype(np.int8))
            factors[name] = values, constants.add(f"{name}_scale", rounded.scales[0])
        weight, weight_scale = factors[name]
        weight_zero = constants.add(f"{weight}_zero_point", np.zeros((), np.int8))
        factor = weight, weight_scale, weight_zero
        write_integer_product(writer, quantized[source], factor, stem=output, output=output, name=node.name)
        count += 1
    return draft.after(draft.graph.rewritten(writer), shifts, int8_products=count)


QUANTIZE_PRODUCTS = Pass("quantize_products", quantize_products)


def write_integer_product(
    writer: GraphWriter,
    source: tuple[str, str, str],
    factor: tuple[str, str, str],
    *,
    stem: str,
    output: str,
    name: str,
) -> str:
    """Sums in int32, and their scale, the input's times the column's, to float32 `output` of a node `name`.

    source, factor: values, scale and zero point of the input and of the weights. stem: what names between begin with.
    """
    values, scale, zero = source
    weight, weight_scale, weight_zero = factor
    total = writer.node("MatMulInteger", [values, weight, zero, weight_zero], f"{stem}_sum", f"{name}_sum")
    as_float = writer.node("Cast", [total], f"{stem}_float", f"{name}_float", to=TensorProto.FLOAT)
    product = writer.node("Mul", [scale, weight_scale], f"{stem}_scale", f"{name}_scale")
    return writer.node("Mul", [as_float, product], output, name)
