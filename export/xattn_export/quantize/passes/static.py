"""Static int8 (QDQ): the range of the inputs of a layer is fixed beforehand, by a `QuantizeLinear` in front of it.

It is the form that NPUs take. Activations are unsigned bytes with a zero point, weights signed with a scale a column or
output channel. https://onnx.ai/onnx/operators/onnx__QuantizeLinear.html
"""

from __future__ import annotations

from collections.abc import Collection, Mapping

import numpy as np
from numpy.typing import NDArray
from onnx import NodeProto

from xattn_export.graph.editing import GraphParts, GraphWriter
from xattn_export.quantize.base.layers import QuantizableLayer, layer_name
from xattn_export.quantize.base.passing import Assignment, Draft, Pass, round_product
from xattn_export.quantize.base.rounding import Grid
from xattn_export.quantize.passes.smooth import SMOOTH_PRODUCTS
from xattn_export.quantize.passes.weights import quantize_rows
from xattn_runtime.errors import XattnError

__all__ = ["FIX_RANGES", "fix_ranges", "tensors_with_ranges"]

_KINDS = ("product", "convolution")
_COLUMNS = Grid(8, 0)
_LARGEST_BYTE = 255
_LARGEST_SUM = 2**31 - 1


def tensors_with_ranges(graph: GraphParts, layers: Collection[QuantizableLayer]) -> set[str]:
    """The tensors whose range `fix_ranges` needs for `layers` of `graph`."""
    return {layer.input for layer in layers if layer.kind in _KINDS} | {
        _result_of(graph, layer) for layer in layers if layer.kind == "convolution"
    }


def fix_ranges(draft: Draft, assignment: Assignment) -> Draft:
    """Put the observed ranges around products and convolutions.

    Raises XattnError where a range was not observed.
    """
    layers = {layer.name: layer for layer in assignment.layers if layer.kind in _KINDS}
    results = {_result_of(draft.graph, layer) for layer in layers.values() if layer.kind == "convolution"}
    static = _StaticWriter(draft, assignment)
    for node in draft.graph.nodes:
        layer = layers.get(layer_name(node))
        written = NodeProto()
        written.CopyFrom(node)
        if layer is not None:
            static.read_quantized(written, layer)
        if written.output[0] in results:
            static.keep_with_range(written)
        else:
            static.writer.keep(written)
    counts = {f"static_{kind}s": sum(layer.kind == kind for layer in layers.values()) for kind in _KINDS}
    return draft.after(draft.graph.rewritten(static.writer), static.shifts, **counts)


FIX_RANGES = Pass("fix_ranges", fix_ranges, after=(SMOOTH_PRODUCTS.name,))


def _result_of(graph: GraphParts, layer: QuantizableLayer) -> str:
    """The output of a convolution, or of the `Relu` that follows it, if one alone does."""
    readers = [node for node in graph.nodes if layer.output in node.input]
    outputs = {output.name for output in graph.outputs}
    if len(readers) == 1 and readers[0].op_type == "Relu" and layer.output not in outputs:
        return str(readers[0].output[0])
    return layer.output


class _StaticWriter:
    """Writes what stands between fixed ranges; a tensor is quantized once for all its readers."""

    def __init__(self, draft: Draft, assignment: Assignment) -> None:
        self.writer = GraphWriter(draft.graph.constants())
        self.shifts: dict[str, NDArray[np.float32]] = {}
        self._observed = draft.observed
        self._options = assignment.options
        self._quantized: dict[str, tuple[str, np.float32]] = {}
        self._weights: dict[str, str] = {}

    def read_quantized(self, node: NodeProto, layer: QuantizableLayer) -> None:
        """Have `node`, a copy, read quantized activations and weights."""
        source, scale = self._activations(layer.input)
        if layer.kind == "product":
            self._product_weights(node)
        else:
            self._convolution_weights(node, scale)
        node.input[0] = source

    def keep_with_range(self, node: NodeProto) -> None:
        """Write `node`, a copy, whose output goes through a fixed range under the name that it had."""
        name = node.output[0]
        node.output[0] = f"{name}_unrounded"
        self.writer.keep(node)
        self._pair(node.output[0], name, name)

    def _activations(self, name: str) -> tuple[str, np.float32]:
        if name not in self._quantized:
            output = f"{name}_static"
            self._quantized[name] = output, self._pair(name, output, name)
        return self._quantized[name]

    def _pair(self, source: str, output: str, observed: str) -> np.float32:
        """Write `QuantizeLinear` and `DequantizeLinear`; the scale of both."""
        scale, zero = _scale_and_zero(self._observed.ranges, observed)
        scale_name = self.writer.constants.add(f"{output}_static_scale", np.array(scale))
        zero_name = self.writer.constants.add(f"{output}_static_zero_point", np.array(zero))
        values = self.writer.node("QuantizeLinear", [source, scale_name, zero_name], f"{output}_static_bytes")
        self.writer.node("DequantizeLinear", [values, scale_name, zero_name], output, f"{output}_dequantized")
        return scale

    def _product_weights(self, node: NodeProto) -> None:
        name = node.input[1]
        if name not in self._weights:
            weights = self.writer.constants.values(name)
            rounded, shift = round_product(weights, _COLUMNS, self._options, self._observed, node.input[0])
            self.shifts |= {} if shift is None else {node.output[0]: shift}
            self._weights[name] = self._restored(name, rounded.values.astype(np.int8), rounded.scales[0], 1)
        node.input[1] = self._weights[name]

    def _convolution_weights(self, node: NodeProto, scale: np.float32) -> None:
        """Weights by output channel, and the bias in steps of the sums."""
        constants = self.writer.constants
        values, scales = quantize_rows(constants.values(node.input[1]))
        node.input[1] = self._restored(node.input[1], values, scales.reshape(-1), 0)
        if len(node.input) > 2 and constants.is_float(node.input[2], 1):
            steps = (scale * scales.reshape(-1)).astype(np.float32)
            sums = np.clip(np.rint(constants.values(node.input[2]) / steps), -_LARGEST_SUM, _LARGEST_SUM)
            node.input[2] = self._restored(node.input[2], sums.astype(np.int32), steps, 0)

    def _restored(self, name: str, values: NDArray[np.signedinteger], scales: NDArray[np.float32], axis: int) -> str:
        constants = self.writer.constants
        stored = constants.add(f"{name}_{values.dtype.name}", values)
        inputs = [stored, constants.add(f"{stored}_scale", scales)]
        if values.dtype == np.int8:
            # Where int8 products need wide sums ONNX Runtime 1.32 makes signed bytes unsigned, and gives those without
            # zero points a scalar one, which does not go with a scale a channel.
            inputs.append(constants.add(f"{stored}_zero_point", np.zeros(scales.shape, np.int8)))
        return self.writer.node("DequantizeLinear", inputs, f"{name}_restored", axis=axis)


def _scale_and_zero(ranges: Mapping[str, tuple[float, float]], name: str) -> tuple[np.float32, np.uint8]:
    """Of unsigned bytes that take in the range, and 0 exactly."""
    if name not in ranges:
        raise XattnError(f"{name}: expected a range that calibration observed, found none")
    low, high = min(ranges[name][0], 0.0), max(ranges[name][1], 0.0)
    scale = np.float32((high - low) / _LARGEST_BYTE) if high > low else np.float32(1)
    return scale, np.uint8(np.clip(round(-low / float(scale)), 0, _LARGEST_BYTE))
