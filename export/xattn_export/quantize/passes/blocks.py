"""Weight-only int4 and int8: products whose weights are stored in few bits, a scale for every block of a column.

What is stored is a blocked `DequantizeLinear` in front of the `MatMul`, which opset 21 has; ONNX Runtime turns the two
into one kernel when it loads the graph. https://onnx.ai/onnx/operators/onnx__DequantizeLinear.html
"""

from __future__ import annotations

from functools import partial

import numpy as np
from numpy.typing import NDArray
from onnx import NodeProto, TensorProto, helper

from xattn_export.graph.editing import Constants, GraphWriter, with_inputs
from xattn_export.quantize.base.layers import layer_name
from xattn_export.quantize.base.options import BLOCKS
from xattn_export.quantize.base.passing import Assignment, Draft, Pass, round_product
from xattn_export.quantize.base.rounding import Grid, Rounded

__all__ = ["STORE_4_BIT_BLOCKS", "STORE_8_BIT_BLOCKS", "block_that_divides", "store_blocks"]

_TYPES = {
    (4, True): TensorProto.INT4,
    (4, False): TensorProto.UINT4,
    (8, True): TensorProto.INT8,
    (8, False): TensorProto.UINT8,
}
_COUNTED = {4: "int4_products", 8: "int8_weight_products"}


def store_blocks(draft: Draft, assignment: Assignment, bits: int) -> Draft:
    """Store the constant factors of products in `bits` bits, in blocks.

    Where the block does not divide the rows, it is the largest smaller one that does; without one the factor stays as
    it is.
    """
    names, writer = assignment.names("product"), GraphWriter(draft.graph.constants())
    restored: dict[str, str] = {}
    stored: list[TensorProto] = []
    shifts: dict[str, NDArray[np.float32]] = {}
    count = 0
    for node in draft.graph.nodes:
        block = _block_of(node, assignment.options.block, writer.constants) if layer_name(node) in names else None
        if block is None:
            writer.keep(node)
            continue
        source, name = node.input
        if name not in restored:
            restored[name] = f"{name}_restored"
            grid = Grid(bits, block, assignment.options.symmetric)
            weights = writer.constants.values(name)
            rounded, shift = round_product(weights, grid, assignment.options, draft.observed, source)
            shifts |= {} if shift is None else {node.output[0]: shift}
            stored += _write_dequantized(name, rounded, restored[name], writer)
        writer.keep(with_inputs(node, [source, restored[name]]))
        count += 1
    for tensor in stored:
        writer.constants.put(tensor)
    return draft.after(draft.graph.rewritten(writer), shifts, **{_COUNTED[bits]: count})


STORE_4_BIT_BLOCKS = Pass("store_4_bit_blocks", partial(store_blocks, bits=4))
STORE_8_BIT_BLOCKS = Pass("store_8_bit_blocks", partial(store_blocks, bits=8), after=(STORE_4_BIT_BLOCKS.name,))


def _block_of(node: NodeProto, block: int, constants: Constants) -> int | None:
    """The size of blocks of the weights of `node`, None where it stays as it is."""
    if node.op_type != "MatMul" or not constants.is_float(node.input[1], 2):
        return None
    return block_that_divides(constants.dims(node.input[1])[0], block)


def block_that_divides(rows: int, block: int) -> int | None:
    """`block`, or the largest smaller one that divides `rows`; None where there is none."""
    return next((size for size in sorted(BLOCKS, reverse=True) if size <= block and rows % size == 0), None)


def _write_dequantized(name: str, rounded: Rounded, output: str, writer: GraphWriter) -> list[TensorProto]:
    """Write the node that restores `rounded` as `output`; the tensors that it reads, but for its scales.

    Those are among the constants already, which read no type of four bits.
    """
    grid = rounded.grid
    data_type = _TYPES[grid.bits, grid.symmetric]
    stem = f"{name}_{'' if grid.symmetric else 'u'}int{grid.bits}"
    tensors = [_packed(stem, rounded.values, data_type)]
    inputs = [stem, writer.constants.add(f"{name}_block_scale", rounded.scales)]
    if (zeros := _zero_points(name, rounded, data_type)) is not None:
        tensors.append(zeros)
        inputs.append(zeros.name)
    writer.node("DequantizeLinear", inputs, output, axis=0, block_size=grid.block)
    return tensors


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
        return helper.make_tensor(name, data_type, values.shape, values.astype(np.uint8).tobytes(), raw=True)
    flat = (values.reshape(-1) & 0x0F).astype(np.uint8)
    flat = np.append(flat, np.uint8(0)) if len(flat) % 2 else flat
    return helper.make_tensor(name, data_type, values.shape, (flat[::2] | flat[1::2] << 4).tobytes(), raw=True)
