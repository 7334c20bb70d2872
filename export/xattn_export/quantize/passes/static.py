"""Static int8 (QDQ): the range of what goes into a layer is fixed beforehand, by a `QuantizeLinear` in front of it.

It is the form that NPUs take. Activations are unsigned bytes with a zero point, weights signed with a scale a column or
output channel. https://onnx.ai/onnx/operators/onnx__QuantizeLinear.html
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto, helper

from xattn_export.quantize.base.layers import Layer, Rounder, find_layers, layer_name
from xattn_export.quantize.base.prepare import Constants, replace_nodes
from xattn_export.quantize.base.rounding import Grid
from xattn_export.quantize.passes.weights import quantize_rows
from xattn_runtime.errors import XattnError

__all__ = ["quantize_static", "watched_tensors"]

_KINDS = ("product", "convolution")
_COLUMNS = Grid(8, 0)
_LARGEST_BYTE = 255
_LARGEST_SUM = 2**31 - 1


def watched_tensors(model: ModelProto, layers: Collection[Layer]) -> set[str]:
    """The tensors whose range `quantize_static` needs for `layers` of `model`."""
    return {layer.found for layer in layers if layer.kind in _KINDS} | {
        _result_of(model, layer) for layer in layers if layer.kind == "convolution"
    }


def quantize_static(
    model: ModelProto, folder: Path | None = None, *, rounder: Rounder, only: Collection[str] | None = None
) -> dict[str, int]:
    """Put fixed ranges around products and convolutions, in place; how many of each kind.

    rounder: holds the ranges that were observed. folder: where weights lie that are beside the graph. only: the layers
    to change, by name.
    Raises XattnError where a range was not observed.
    """
    layers = {
        layer.name: layer
        for layer in find_layers(model, folder)
        if layer.kind in _KINDS and (only is None or layer.name in only)
    }
    results = {_result_of(model, layer): layer for layer in layers.values() if layer.kind == "convolution"}
    constants = Constants(model.graph, folder)
    writer = _Writer(constants, rounder)
    replacements: dict[int, list[NodeProto]] = {}
    for index, node in enumerate(model.graph.node):
        layer = layers.get(layer_name(node))
        written = [node] if layer is None else writer.layer(node, layer)
        if node.output[0] in results:
            written = writer.result(written)
        if written != [node]:
            replacements[index] = written
    replace_nodes(model.graph, replacements)
    constants.write_back()
    return {kind: sum(layer.kind == kind for layer in layers.values()) for kind in _KINDS}


def _result_of(model: ModelProto, layer: Layer) -> str:
    """What a convolution gives after the `Relu` that follows it, if one alone does."""
    readers = [node for node in model.graph.node if layer.given in node.input]
    outputs = {output.name for output in model.graph.output}
    if len(readers) == 1 and readers[0].op_type == "Relu" and layer.given not in outputs:
        return str(readers[0].output[0])
    return layer.given


class _Writer:
    """Writes the nodes of layers between fixed ranges; a tensor is quantized once for all its readers."""

    def __init__(self, constants: Constants, rounder: Rounder) -> None:
        self._constants = constants
        self._rounder = rounder
        self._quantized: dict[str, tuple[str, np.float32]] = {}
        self._weights: dict[str, str] = {}

    def layer(self, node: NodeProto, layer: Layer) -> list[NodeProto]:
        """The layer, reading quantized activations and weights."""
        nodes, found, scale = self._activations(layer.found)
        nodes += self._product_weights(node) if layer.kind == "product" else self._convolution_weights(node, scale)
        node.input[0] = found
        return [*nodes, node]

    def result(self, nodes: list[NodeProto]) -> list[NodeProto]:
        """The last of `nodes`, whose result goes through a fixed range under the name that it had."""
        name = nodes[-1].output[0]
        raw = f"{name}_unrounded"
        nodes[-1].output[0] = raw
        return [*nodes, *self._pair(raw, name, name)[0]]

    def _activations(self, name: str) -> tuple[list[NodeProto], str, np.float32]:
        if name in self._quantized:
            return [], *self._quantized[name]
        output = f"{name}_static"
        nodes, scale = self._pair(name, output, name)
        self._quantized[name] = output, scale
        return nodes, output, scale

    def _pair(self, found: str, given: str, observed: str) -> tuple[list[NodeProto], np.float32]:
        """`QuantizeLinear` and `DequantizeLinear`, and the scale of both."""
        scale, zero = _scale_and_zero(self._rounder.observed.ranges, observed)
        scale_name = self._constants.add(f"{given}_static_scale", np.array(scale))
        zero_name = self._constants.add(f"{given}_static_zero_point", np.array(zero))
        values = f"{given}_static_bytes"
        return [
            helper.make_node("QuantizeLinear", [found, scale_name, zero_name], [values], name=values),
            helper.make_node("DequantizeLinear", [values, scale_name, zero_name], [given], name=f"{given}_dequantized"),
        ], scale

    def _product_weights(self, node: NodeProto) -> list[NodeProto]:
        name = node.input[1]
        if name in self._weights:
            node.input[1] = self._weights[name]
            return []
        rounded = self._rounder(self._constants.values(name), _COLUMNS, node.input[0], node.output[0])
        node.input[1] = self._weights[name] = f"{name}_restored"
        return [self._restored(name, rounded.values.astype(np.int8), rounded.scales[0], 1)]

    def _convolution_weights(self, node: NodeProto, scale: np.float32) -> list[NodeProto]:
        """Weights by output channel, and the bias in steps of the sums."""
        name = node.input[1]
        values, scales = quantize_rows(self._constants.values(name))
        nodes = [self._restored(name, values, scales.reshape(-1), 0)]
        node.input[1] = nodes[0].output[0]
        if len(node.input) > 2 and self._constants.is_float(node.input[2], 1):
            steps = (scale * scales.reshape(-1)).astype(np.float32)
            sums = np.clip(np.rint(self._constants.values(node.input[2]) / steps), -_LARGEST_SUM, _LARGEST_SUM)
            nodes.append(self._restored(node.input[2], sums.astype(np.int32), steps, 0))
            node.input[2] = nodes[1].output[0]
        return nodes

    def _restored(
        self, name: str, values: NDArray[np.signedinteger], scales: NDArray[np.float32], axis: int
    ) -> NodeProto:
        stored = self._constants.add(f"{name}_{values.dtype.name}", values)
        scale = self._constants.add(f"{stored}_scale", scales)
        inputs, restored = [stored, scale], f"{name}_restored"
        if values.dtype == np.int8:
            # Where int8 products need wide sums ONNX Runtime 1.32 makes signed bytes unsigned, and gives those without
            # zero points a scalar one, which does not go with a scale a channel.
            inputs.append(self._constants.add(f"{stored}_zero_point", np.zeros(scales.shape, np.int8)))
        return helper.make_node("DequantizeLinear", inputs, [restored], name=restored, axis=axis)


def _scale_and_zero(ranges: Mapping[str, tuple[float, float]], name: str) -> tuple[np.float32, np.uint8]:
    """Of unsigned bytes that take in the range, and 0 exactly."""
    if name not in ranges:
        raise XattnError(f"{name}: expected a range that calibration observed, found none")
    low, high = min(ranges[name][0], 0.0), max(ranges[name][1], 0.0)
    scale = np.float32((high - low) / _LARGEST_BYTE) if high > low else np.float32(1)
    return scale, np.uint8(np.clip(round(-low / float(scale)), 0, _LARGEST_BYTE))
