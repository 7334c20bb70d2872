"""Weight-only int4 and int8: products whose weights are stored in few bits, a scale for every block of a column.

What is stored is a blocked `DequantizeLinear` in front of the `MatMul`, which opset 21 has; ONNX Runtime turns the two
into one kernel when it loads the graph. https://onnx.ai/onnx/operators/onnx__DequantizeLinear.html
"""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto, TensorProto, helper

from xattn_export.quantize.base.layers import FEWEST_WEIGHTS, Rounder, is_chosen
from xattn_export.quantize.base.options import BLOCKS
from xattn_export.quantize.base.prepare import Constants, replace_nodes
from xattn_export.quantize.base.rounding import Grid, Rounded

__all__ = ["FOUR_BITS", "LOWEST_OPSET", "block_that_divides", "quantize_blocks"]

FOUR_BITS = Grid(4, 32)
"""Signed, a scale for every 32."""

LOWEST_OPSET = 21

_TYPES = {
    (4, True): TensorProto.INT4,
    (4, False): TensorProto.UINT4,
    (8, True): TensorProto.INT8,
    (8, False): TensorProto.UINT8,
}


def quantize_blocks(
    model: ModelProto,
    folder: Path | None = None,
    *,
    grid: Grid = FOUR_BITS,
    rounder: Rounder | None = None,
    only: Collection[str] | None = None,
) -> int:
    """Store the large constant factors of products on `grid`, in place; how many.

    Where the block does not divide the rows the largest smaller one that does is taken; without one the factor is left
    as it is. `folder`: where weights lie that are beside the graph. `only`: the layers to change, by name.
    """
    graph = model.graph
    constants = Constants(graph, folder)
    rounder = rounder or Rounder()
    restored: dict[str, str] = {}
    replacements: dict[int, list[NodeProto]] = {}
    stored: list[TensorProto] = []
    for index, node in enumerate(graph.node):
        if node.op_type != "MatMul" or not is_chosen(node, only):
            continue
        name = node.input[1]
        if not constants.is_float(name, 2) or constants.elements(name) < FEWEST_WEIGHTS:
            continue
        if (block := block_that_divides(constants.dims(name)[0], grid.block)) is None:
            continue
        added: list[NodeProto] = []
        if name not in restored:
            restored[name] = f"{name}_restored"
            fitting = Grid(grid.bits, block, grid.symmetric)
            rounded = rounder(constants.values(name), fitting, node.input[0], node.output[0])
            tensors, dequantize = _dequantized(name, rounded, restored[name], constants)
            stored += tensors
            added.append(dequantize)
        node.input[1] = restored[name]
        replacements[index] = [*added, node]
    replace_nodes(graph, replacements)
    constants.write_back()
    graph.initializer.extend(stored)
    return len(replacements)


def block_that_divides(rows: int, block: int) -> int | None:
    """`block`, or the largest smaller one that divides `rows`; None where there is none."""
    return next((size for size in sorted(BLOCKS, reverse=True) if size <= block and rows % size == 0), None)


def _dequantized(name: str, rounded: Rounded, output: str, constants: Constants) -> tuple[list[TensorProto], NodeProto]:
    """The node that restores `rounded` as `output`, and the tensors that it reads, but for its scales.

    Those are put among `constants`, which know no type of four bits.
    """
    grid = rounded.grid
    data_type = _TYPES[grid.bits, grid.symmetric]
    stem = f"{name}_{'' if grid.symmetric else 'u'}int{grid.bits}"
    tensors = [_packed(stem, rounded.values, data_type)]
    inputs = [stem, constants.add(f"{name}_block_scale", rounded.scales)]
    if (zeros := _zero_points(name, rounded, data_type)) is not None:
        tensors.append(zeros)
        inputs.append(zeros.name)
    node = helper.make_node("DequantizeLinear", inputs, [output], name=output, axis=0, block_size=grid.block)
    return tensors, node


def _zero_points(name: str, rounded: Rounded, data_type: int) -> TensorProto | None:
    """The zero points of each block, None where none have to be written.

    Signed bytes have zeros, a tensor each, as no two products may share one on ONNX Runtime 1.32. Where int8 products
    need wide sums it makes signed bytes unsigned, and gives those without any a scalar one, which no block can have.
    """
    if rounded.zeros is None and data_type != TensorProto.INT8:
        return None
    zeros = np.zeros(rounded.scales.shape, np.int16) if rounded.zeros is None else rounded.zeros
    return _packed(f"{name}_block_zero_point", zeros, data_type)


def _packed(name: str, values: NDArray[np.int16], data_type: int) -> TensorProto:
    """Values of 8 bits a byte each, those of 4 bits two a byte, the first in the low half."""
    if data_type in (TensorProto.INT8, TensorProto.UINT8):
        return onnx.helper.make_tensor(name, data_type, values.shape, values.astype(np.uint8).tobytes(), raw=True)
    flat = (values.reshape(-1) & 0x0F).astype(np.uint8)
    flat = np.append(flat, np.uint8(0)) if len(flat) % 2 else flat
    return onnx.helper.make_tensor(name, data_type, values.shape, (flat[::2] | flat[1::2] << 4).tobytes(), raw=True)
