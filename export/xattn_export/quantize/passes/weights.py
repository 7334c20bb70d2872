"""Weight-only int8: weights of convolutions, embeddings and recurrences stored as bytes with a scale a channel or row.

What is stored is `Cast` and `Mul` of a constant rather than `DequantizeLinear`: every engine folds the two when it
loads the graph, while ONNX Runtime by default keeps `DequantizeLinear` and runs it at every call, which also keeps a
convolution from its fastest layout. An embedding is looked up as bytes, and only the rows found become float32.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto, TensorProto, helper

from xattn_export.quantize.base.layers import FEWEST_WEIGHTS, find_layers, is_chosen, layer_name
from xattn_export.quantize.base.prepare import Constants, replace_nodes

__all__ = ["quantize_rows", "store_convolutions", "store_embeddings", "store_recurrences"]

_LARGEST_INT8 = 127
# The first convolution of a picture: its weights are few beside the others, and its error goes through all layers.
_MOST_CHANNELS_OF_PICTURES = 4
_LARGEST_HALF = 65504


def store_convolutions(model: ModelProto, folder: Path | None = None, *, only: Collection[str] | None = None) -> int:
    """Store the weights of large convolutions as int8 with a scale an output channel, in place; how many.

    Those over a picture's own channels are stored in half precision. folder: where weights lie that are beside the
    graph. only: the layers to change, by name.
    """
    graph = model.graph
    constants = Constants(graph, folder)
    replacements: dict[int, list[NodeProto]] = {}
    for index, node in enumerate(graph.node):
        if node.op_type != "Conv" or not constants.is_float(node.input[1], 4) or not is_chosen(node, only):
            continue
        if constants.elements(node.input[1]) < FEWEST_WEIGHTS:
            continue
        weights = constants.values(node.input[1])
        if weights.shape[1] <= _MOST_CHANNELS_OF_PICTURES and np.abs(weights).max() <= _LARGEST_HALF:
            replacements[index] = [_from_half(node, weights, constants), node]
            continue
        values, scales = quantize_rows(weights)
        if weights.shape[2:] == (1, 1):
            # Restored as rows: OpenVINO forgets the strides of what it sees to be a product (docs/conformance.md).
            rows = _restored(node, 1, values[:, :, 0, 0], scales[:, :, 0, 0], constants)
            replacements[index] = [*rows, _reshaped(node, 1, weights.shape, constants), node]
        else:
            replacements[index] = [*_restored(node, 1, values, scales, constants), node]
    replace_nodes(graph, replacements)
    constants.write_back()
    return len(replacements)


def store_recurrences(model: ModelProto, folder: Path | None = None, *, only: Collection[str] | None = None) -> int:
    """Store the weights of large recurrent layers as int8 with a scale a gate's row, in place; how many layers.

    What such a layer computes stays float32. folder: where weights lie that are beside the graph. only: the layers to
    change, by name.
    """
    graph = model.graph
    constants = Constants(graph, folder)
    large = {layer.name for layer in find_layers(model, folder) if layer.kind == "recurrence"}
    replacements: dict[int, list[NodeProto]] = {}
    for index, node in enumerate(graph.node):
        if layer_name(node) not in large or not is_chosen(node, only):
            continue
        added: list[NodeProto] = []
        for place in (1, 2):  # of the input, of the state before: `[directions, gates × hidden, …]`
            if constants.is_float(node.input[place], 3):
                weights = constants.values(node.input[place])
                values, scales = quantize_rows(weights.reshape(-1, weights.shape[2]))
                shape = (*weights.shape[:2], 1)
                added += _restored(node, place, values.reshape(weights.shape), scales.reshape(shape), constants)
        replacements[index] = [*added, node]
    replace_nodes(graph, replacements)
    constants.write_back()
    return len(replacements)


def _from_half(node: NodeProto, weights: NDArray[np.float32], constants: Constants) -> NodeProto:
    """The node that restores weights of half precision, which `node` then reads."""
    stored = constants.add(f"{node.input[1]}_fp16", weights.astype(np.float16))
    node.input[1] = f"{stored}_restored"
    return helper.make_node("Cast", [stored], [node.input[1]], name=node.input[1], to=TensorProto.FLOAT)


def _restored(
    node: NodeProto, place: int, values: NDArray[np.int8], scales: NDArray[np.float32], constants: Constants
) -> list[NodeProto]:
    """Nodes that restore the weights, which `node` then reads at `place`."""
    name = node.input[place]
    stored, scale = constants.add(f"{name}_int8", values), constants.add(f"{name}_channel_scale", scales)
    as_float, restored = f"{stored}_float", f"{stored}_restored"
    node.input[place] = restored
    return [
        helper.make_node("Cast", [stored], [as_float], name=as_float, to=TensorProto.FLOAT),
        helper.make_node("Mul", [as_float, scale], [restored], name=restored),
    ]


def _reshaped(node: NodeProto, place: int, shape: Sequence[int], constants: Constants) -> NodeProto:
    """The node that gives what `node` reads at `place` a shape, which `node` then reads."""
    name = node.input[place]
    sizes = constants.add(f"{name}_sizes", np.array(shape, np.int64))
    node.input[place] = f"{name}_shaped"
    return helper.make_node("Reshape", [name, sizes], [node.input[place]], name=node.input[place])


def store_embeddings(model: ModelProto, folder: Path | None = None, *, only: Collection[str] | None = None) -> int:
    """Store large tables that are looked up as int8 with a scale a row, in place; how many lookups.

    folder: where weights lie that are beside the graph. only: the layers to change, by name.
    """
    graph = model.graph
    constants = Constants(graph, folder)
    large = {layer.name for layer in find_layers(model, folder) if layer.kind == "embedding"}
    stored: dict[str, tuple[str, str]] = {}
    replacements: dict[int, list[NodeProto]] = {}
    for index, node in enumerate(graph.node):
        if layer_name(node) not in large or not is_chosen(node, only):
            continue
        table, indices, output = node.input[0], node.input[1], node.output[0]
        if table not in stored:
            values, scales = quantize_rows(constants.values(table))
            stored[table] = constants.add(f"{table}_int8", values), constants.add(f"{table}_row_scale", scales)
        values_name, scale_name = stored[table]
        rows, scale, as_float = (f"{output}_{part}" for part in ("row_int8", "row_scale", "row_float"))
        replacements[index] = [
            helper.make_node("Gather", [values_name, indices], [rows], name=rows),
            helper.make_node("Gather", [scale_name, indices], [scale], name=scale),
            helper.make_node("Cast", [rows], [as_float], name=as_float, to=TensorProto.FLOAT),
            helper.make_node("Mul", [as_float, scale], [output], name=node.name),
        ]
    replace_nodes(graph, replacements)
    constants.write_back()
    return len(replacements)


def quantize_rows(weights: NDArray[np.float32]) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
    """int8 values and float32 scales `[rows, 1, …]`, symmetric, so that `values * scales` is near `weights`."""
    largest = np.abs(weights).max(axis=tuple(range(1, weights.ndim)), keepdims=True)
    scales = np.where(largest > 0, largest / _LARGEST_INT8, 1.0).astype(np.float32)
    return np.rint(weights / scales).astype(np.int8), scales
