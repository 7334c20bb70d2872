"""Weight-only int4: products whose weights are stored in 4 bits with a scale for every block of a column.

What is stored is a blocked `DequantizeLinear` in front of the `MatMul`, which opset 21 has; ONNX Runtime turns the two
into one kernel when it loads the graph. https://onnx.ai/onnx/operators/onnx__DequantizeLinear.html
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto, TensorProto, helper

from xattn_export.quantize.prepare import Constants, replace_nodes

__all__ = ["BLOCK", "LOWEST_OPSET", "quantize_blocks"]

BLOCK = 32
"""Weights that share a scale, along the dimension that is summed over."""

LOWEST_OPSET = 21

_FEWEST_WEIGHTS = 4096
_LOWEST, _HIGHEST = -8, 7
# Of the scale that takes in the largest weight of a block: clipping it a little often fits the others better.
_SCALE_SHARES = (1.0, 0.95, 0.9, 0.85, 0.8, 0.75)


def quantize_blocks(model: ModelProto, folder: Path | None = None) -> int:
    """Store the large constant factors of products in int4, in place; how many.

    A factor whose number of rows is no multiple of `BLOCK` is left as it is. `folder`: where weights lie that are
    beside the graph.
    """
    graph = model.graph
    constants = Constants(graph, folder)
    restored: dict[str, str] = {}
    replacements: dict[int, list[NodeProto]] = {}
    stored: list[TensorProto] = []
    for index, node in enumerate(graph.node):
        if node.op_type != "MatMul" or not _is_large_factor(constants, node.input[1]):
            continue
        name = node.input[1]
        added: list[NodeProto] = []
        if name not in restored:
            restored[name] = f"{name}_restored"
            values, scales = quantize_columns(constants.values(name))
            scale = constants.add(f"{name}_block_scale", scales)
            stored.append(_packed(f"{name}_int4", values))
            inputs = [stored[-1].name, scale]
            dequantize = helper.make_node(
                "DequantizeLinear", inputs, [restored[name]], name=restored[name], axis=0, block_size=BLOCK
            )
            added.append(dequantize)
        node.input[1] = restored[name]
        replacements[index] = [*added, node]
    replace_nodes(graph, replacements)
    constants.write_back()
    graph.initializer.extend(stored)
    return len(replacements)


def quantize_columns(weights: NDArray[np.float32]) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
    """int4 values of `weights` `[rows, columns]`, held as int8, and float32 scales `[rows / BLOCK, columns]`.

    Symmetric: a weight is near its value times the scale of its block. Of several scales the one with the least
    squared error is taken; the largest weight of a block has the sign that reaches further, -8.
    """
    rows, columns = weights.shape
    blocks = weights.reshape(rows // BLOCK, BLOCK, columns)
    at = np.abs(blocks).argmax(axis=1, keepdims=True)
    widest = np.take_along_axis(blocks, at, axis=1) / _LOWEST
    best = np.where(widest == 0, np.float32(1), widest)
    values, least = _rounded(blocks, best)
    for share in _SCALE_SHARES[1:]:
        scales = np.where(widest == 0, np.float32(1), widest * np.float32(share))
        found, error = _rounded(blocks, scales)
        better = error < least
        values, best, least = (
            np.where(better, new, old) for new, old in ((found, values), (scales, best), (error, least))
        )
    return values.reshape(rows, columns).astype(np.int8), best[:, 0].astype(np.float32)


def _rounded(
    blocks: NDArray[np.float32], scales: NDArray[np.float32]
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Values at `scales`, and the squared error of each block, `[blocks, 1, columns]`."""
    values = np.clip(np.rint(blocks / scales), _LOWEST, _HIGHEST)
    return values, np.square(values * scales - blocks).sum(axis=1, keepdims=True)


def _is_large_factor(constants: Constants, name: str) -> bool:
    return (
        constants.is_float(name, 2)
        and constants.elements(name) >= _FEWEST_WEIGHTS
        and constants.dims(name)[0] % BLOCK == 0
    )


def _packed(name: str, values: NDArray[np.int8]) -> TensorProto:
    """Two values a byte, the first in the low half."""
    halves = (values.reshape(-1, 2) & 0x0F).astype(np.uint8)
    content = (halves[:, 0] | halves[:, 1] << 4).tobytes()
    return onnx.helper.make_tensor(name, TensorProto.INT4, values.shape, content, raw=True)
