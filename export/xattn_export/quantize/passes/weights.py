"""Weight-only int8: weights of convolutions, embeddings and recurrences stored as bytes with a scale a channel or row.

What is stored is `Cast` and `Mul` of a constant rather than `DequantizeLinear`: every engine folds the two when it
loads the graph, while ONNX Runtime by default keeps `DequantizeLinear` and runs it at every call, which also keeps a
convolution from its fastest layout. An embedding is looked up as bytes, and only the rows that are looked up become
float32.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from onnx import NodeProto, TensorProto

from xattn_export.graph.editing import GraphWriter, with_inputs
from xattn_export.quantize.base.layers import layer_name
from xattn_export.quantize.base.passing import Assignment, Draft, Pass

__all__ = [
    "STORE_CONVOLUTIONS",
    "STORE_EMBEDDINGS",
    "STORE_RECURRENCES",
    "quantize_rows",
    "store_convolutions",
    "store_embeddings",
    "store_recurrences",
]

_LARGEST_INT8 = 127
# The first convolution of an image: its weights are few beside the others, and its error goes through all layers.
_MOST_CHANNELS_OF_IMAGES = 4
_LARGEST_HALF = 65504


def store_convolutions(draft: Draft, assignment: Assignment) -> Draft:
    """Store the weights of convolutions as int8 with a scale an output channel.

    Those over an image's own channels are stored in half precision.
    """
    names, writer = assignment.names("convolution"), GraphWriter(draft.graph.constants())
    count = 0
    for node in draft.graph.nodes:
        if layer_name(node) in names and node.op_type == "Conv" and writer.constants.is_float(node.input[1], 4):
            _store_convolution(node, writer)
            count += 1
        else:
            writer.keep(node)
    return draft.after(draft.graph.rewritten(writer), int8_stored_convolutions=count)


def _store_convolution(node: NodeProto, writer: GraphWriter) -> None:
    name = node.input[1]
    weights = writer.constants.values(name)
    if weights.shape[1] <= _MOST_CHANNELS_OF_IMAGES and np.abs(weights).max() <= _LARGEST_HALF:
        stored = writer.constants.add(f"{name}_fp16", weights.astype(np.float16))
        restored = writer.node("Cast", [stored], f"{stored}_restored", to=TensorProto.FLOAT)
    else:
        values, scales = quantize_rows(weights)
        if weights.shape[2:] == (1, 1):
            # Restored as rows: OpenVINO forgets the strides of what it sees to be a product (docs/conformance.md).
            rows = _write_restored(name, values[:, :, 0, 0], scales[:, :, 0, 0], writer)
            sizes = writer.constants.add(f"{rows}_sizes", np.array(weights.shape, np.int64))
            restored = writer.node("Reshape", [rows, sizes], f"{rows}_shaped")
        else:
            restored = _write_restored(name, values, scales, writer)
    writer.keep(with_inputs(node, [node.input[0], restored, *node.input[2:]]))


def store_embeddings(draft: Draft, assignment: Assignment) -> Draft:
    """Store tables that are looked up as int8 with a scale a row, but for those of tied pairs."""
    names = assignment.names("embedding") - {pair.lookup.name for pair in assignment.tied}
    writer = GraphWriter(draft.graph.constants())
    stored: dict[str, tuple[str, str]] = {}
    count = 0
    for node in draft.graph.nodes:
        if layer_name(node) not in names:
            writer.keep(node)
            continue
        table, indices, output = node.input[0], node.input[1], node.output[0]
        if table not in stored:
            values, scales = quantize_rows(writer.constants.values(table))
            stored_values = writer.constants.add(f"{table}_int8", values)
            stored[table] = stored_values, writer.constants.add(f"{table}_row_scale", scales)
        rows = writer.node("Gather", [stored[table][0], indices], f"{output}_row_int8")
        scale = writer.node("Gather", [stored[table][1], indices], f"{output}_row_scale")
        as_float = writer.node("Cast", [rows], f"{output}_row_float", to=TensorProto.FLOAT)
        writer.node("Mul", [as_float, scale], output, node.name)
        count += 1
    return draft.after(draft.graph.rewritten(writer), int8_embeddings=count)


def store_recurrences(draft: Draft, assignment: Assignment) -> Draft:
    """Store the weights of recurrent layers as int8 with a scale a gate's row; what they compute stays float32."""
    names, writer = assignment.names("recurrence"), GraphWriter(draft.graph.constants())
    count = 0
    for node in draft.graph.nodes:
        if layer_name(node) not in names:
            writer.keep(node)
            continue
        inputs = list(node.input)
        for place in (1, 2):  # of the input, of the state: `[directions, gates × hidden, …]`
            if writer.constants.is_float(inputs[place], 3):
                weights = writer.constants.values(inputs[place])
                values, scales = quantize_rows(weights.reshape(-1, weights.shape[2]))
                shape = (*weights.shape[:2], 1)
                values, scales = values.reshape(weights.shape), scales.reshape(shape)
                inputs[place] = _write_restored(inputs[place], values, scales, writer)
        writer.keep(with_inputs(node, inputs))
        count += 1
    return draft.after(draft.graph.rewritten(writer), int8_recurrences=count)


STORE_CONVOLUTIONS = Pass("store_convolutions", store_convolutions)
STORE_EMBEDDINGS = Pass("store_embeddings", store_embeddings)
STORE_RECURRENCES = Pass("store_recurrences", store_recurrences)


def _write_restored(name: str, values: NDArray[np.int8], scales: NDArray[np.float32], writer: GraphWriter) -> str:
    """The output of nodes that restore the weights `name`."""
    stored = writer.constants.add(f"{name}_int8", values)
    scale = writer.constants.add(f"{name}_channel_scale", scales)
    as_float = writer.node("Cast", [stored], f"{stored}_float", to=TensorProto.FLOAT)
    return writer.node("Mul", [as_float, scale], f"{stored}_restored")


def quantize_rows(weights: NDArray[np.float32]) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
    """int8 values and float32 scales `[rows, 1, …]`, symmetric, so that `values * scales` is near `weights`."""
    largest = np.abs(weights).max(axis=tuple(range(1, weights.ndim)), keepdims=True)
    scales = np.where(largest > 0, largest / _LARGEST_INT8, 1.0).astype(np.float32)
    return np.rint(weights / scales).astype(np.int8), scales
