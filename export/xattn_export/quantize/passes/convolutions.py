"""Dynamic int8 convolutions: a convolution becomes a gathering of rows and `MatMulInteger`.

ONNX Runtime computes `ConvInteger` more slowly than the convolution in float32, but int8 products fast. So the feature
map is held position by position, `[batch, height × width, channels]`, quantized, and the rows under each place of the
kernel are gathered as bytes (im2col: Chellapilla et al., 2006). Between two such convolutions it stays so.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import NodeProto, helper, shape_inference

from xattn_export.graph.editing import Constants, GraphParts, GraphWriter, attributes, with_inputs
from xattn_export.quantize.base.layers import layer_name
from xattn_export.quantize.base.passing import Assignment, Draft, Pass
from xattn_export.quantize.base.rounding import round_weights
from xattn_export.quantize.passes.products import COLUMNS, write_integer_product
from xattn_export.quantize.passes.static import FIX_RANGES

__all__ = ["QUANTIZE_CONVOLUTIONS", "quantize_convolutions"]

# Narrower maps are computed as fast in float32, and the image itself keeps its precision.
_FEWEST_CHANNELS = 64
_ELEMENTWISE = {"Relu", "Add", "Mul", "Gelu", "Sigmoid"}


def quantize_convolutions(draft: Draft, assignment: Assignment) -> Draft:
    """Compute convolutions over wide maps of a fixed size in int8, a scale an output channel.

    Left as they are: convolutions in groups, dilated ones, those over fewer than 64 channels.
    """
    names = assignment.names("convolution")
    assigned = [node for node in draft.graph.nodes if layer_name(node) in names]
    if not assigned:
        return draft
    graph, maps, constants = draft.graph, _map_shapes(draft.graph), draft.graph.constants()
    chosen = {node.output[0]: conv for node in assigned if (conv := _convolution(node, constants, maps))}
    if not chosen:
        return draft
    rewriter = _PositionWriter(graph, constants, maps)
    for node in graph.nodes:
        rewriter.add(node, chosen.get(node.output[0]))
    return draft.after(rewriter.finished(), int8_convolutions=len(chosen))


QUANTIZE_CONVOLUTIONS = Pass("quantize_convolutions", quantize_convolutions, after=(FIX_RANGES.name,))


@dataclass(frozen=True)
class _Map:
    """The static axes of a feature map `[batch, channels, height, width]`."""

    channels: int
    height: int
    width: int


@dataclass(frozen=True)
class _Convolution:
    """kernel, strides: height and width. pads: top and left. input, output: its maps."""

    kernel: tuple[int, int]
    strides: tuple[int, int]
    pads: tuple[int, int]
    input: _Map
    output: _Map

    def rows(self) -> NDArray[np.int64]:
        """The row of the map for each position of the result and place of the kernel; one past the last for zeros."""
        axes = []
        sizes = (self.input.height, self.output.height), (self.input.width, self.output.width)
        for axis, (size, out) in enumerate(sizes):
            index = np.arange(out)[:, None] * self.strides[axis] - self.pads[axis] + np.arange(self.kernel[axis])
            axes.append(np.where((index >= 0) & (index < size), index, -1))
        down, across = axes[0][:, None, :, None], axes[1][None, :, None, :]
        outside = self.input.height * self.input.width
        rows = np.where((down < 0) | (across < 0), outside, down * self.input.width + across)
        return rows.reshape(-1).astype(np.int64)


def _map_shapes(graph: GraphParts) -> dict[str, _Map]:
    """The feature maps whose size is known."""
    inferred = shape_inference.infer_shapes(graph.outline()).graph
    maps = {}
    for value in (*inferred.value_info, *inferred.input, *inferred.output):
        sizes = [axis.dim_value for axis in value.type.tensor_type.shape.dim]
        if len(sizes) == 4 and all(size > 0 for size in sizes[1:]):
            maps[value.name] = _Map(*sizes[1:])
    return maps


def _convolution(node: NodeProto, constants: Constants, maps: Mapping[str, _Map]) -> _Convolution | None:
    """What is to be computed, None where it stays as it is."""
    if node.op_type != "Conv" or not constants.is_float(node.input[1], 4):
        return None
    source, target = maps.get(node.input[0]), maps.get(node.output[0])
    if source is None or target is None or source.channels < _FEWEST_CHANNELS:
        return None
    options, kernel = attributes(node), constants.dims(node.input[1])
    is_plain = (
        options.get("group", 1) == 1
        and set(options.get("dilations", [1])) == {1}  # type: ignore[call-overload]
        and options.get("auto_pad", b"NOTSET") == b"NOTSET"
    )
    if not is_plain:
        return None
    strides, pads = options.get("strides", [1, 1]), options.get("pads", [0, 0, 0, 0])
    return _Convolution((kernel[2], kernel[3]), tuple(strides), tuple(pads[:2]), source, target)  # type: ignore[arg-type, index]


class _PositionWriter:
    """Writes the nodes anew, one after the other, and knows which maps are held position by position."""

    def __init__(self, graph: GraphParts, constants: Constants, maps: Mapping[str, _Map]) -> None:
        self._graph = graph
        self._constants = constants
        self._writer = GraphWriter(constants)
        self._maps = maps
        self._positions: dict[str, str] = {}
        self._quantized: dict[str, tuple[str, str, str]] = {}
        self._flat: dict[str, NodeProto] = {}
        self._renamed: dict[str, str] = {}
        self._outputs = {tensor.name for tensor in graph.outputs}
        self._is_written = {tensor.name for tensor in graph.inputs}

    def add(self, node: NodeProto, convolution: _Convolution | None) -> None:
        """`node`, or its replacement."""
        node = with_inputs(node, (self._renamed.get(name, name) for name in node.input))
        if convolution is not None:
            self._convolve(node, convolution)
        elif node.op_type in _ELEMENTWISE and self._keeps_positions(node):
            self._apply(node)
        elif self._flattens(node):
            self._flat[node.output[0]] = node
        elif self._makes_positions(node):
            self._renamed[node.output[0]] = self._positions[self._flat[node.input[0]].input[0]]
        else:
            self._keep(node)

    def finished(self) -> GraphParts:
        """The graph, after the maps that are its outputs."""
        for output in self._graph.outputs:
            self._write_map(output.name)
        return self._graph.rewritten(self._writer)

    def _keep(self, node: NodeProto) -> None:
        """The node as it is, after what it reads."""
        for name in node.input:
            if name in self._flat:
                self._keep(self._flat.pop(name))
            self._write_map(name)
        self._writer.keep(node)
        self._is_written.update(node.output)

    def _convolve(self, node: NodeProto, convolution: _Convolution) -> None:
        values, zero, scale = self._quantize(node.input[0])
        output, source, target = node.output[0], convolution.input, convolution.output
        places = convolution.kernel[0] * convolution.kernel[1]
        rows = self._constants.add(f"{output}_rows", convolution.rows())
        values = self._node("Gather", [values, rows], f"{output}_gathered", axis=1)
        sizes = np.array([0, target.height * target.width, places * source.channels], np.int64)
        shape = self._constants.add(f"{output}_columns", sizes)
        values = self._node("Reshape", [values, shape], f"{output}_patches")
        weights = self._constants.values(node.input[1]).transpose(0, 2, 3, 1).reshape(target.channels, -1)
        rounded = round_weights(weights.T, COLUMNS, "fitted")
        weight = self._constants.add(f"{node.input[1]}_int8", rounded.values.astype(np.int8))
        weight_scale = self._constants.add(f"{node.input[1]}_channel_scale", rounded.scales[0])
        weight_zero = self._constants.add(f"{node.input[1]}_zero_point", np.zeros((), np.int8))
        activations, factor, scaled = (values, scale, zero), (weight, weight_scale, weight_zero), f"{output}_scaled"
        result = write_integer_product(self._writer, activations, factor, stem=output, output=scaled, name=scaled)
        if len(node.input) > 2:
            result = self._node("Add", [result, node.input[2]], f"{output}_biased")
        self._positions[output] = result

    def _quantize(self, name: str) -> tuple[str, str, str]:
        """The map as bytes, with a row of zeros after the last, its zero point and its scale; once for all readers."""
        if name not in self._quantized:
            positions = self._by_positions(name)
            values, scale, zero = (f"{name}_{part}" for part in ("bytes", "bytes_scale", "bytes_zero_point"))
            outputs = [values, scale, zero]
            self._writer.keep(helper.make_node("DynamicQuantizeLinear", [positions], outputs, name=values))
            pads = self._constants.add(f"{name}_pads", np.array([0, 0, 0, 0, 1, 0], np.int64))
            self._quantized[name] = self._node("Pad", [values, pads, zero], f"{name}_padded"), zero, scale
        return self._quantized[name]

    def _by_positions(self, name: str) -> str:
        """The map `name` as `[batch, height × width, channels]`."""
        if name not in self._positions:
            size = self._maps[name]
            sizes = np.array([0, size.channels, size.height * size.width], np.int64)
            shape = self._constants.add(f"{name}_sizes", sizes)
            flat = self._node("Reshape", [name, shape], f"{name}_flat")
            self._positions[name] = self._node("Transpose", [flat], f"{name}_positions", perm=[0, 2, 1])
        return self._positions[name]

    def _write_map(self, name: str) -> None:
        """`name` as the map that it was, where a reader needs it."""
        if name not in self._positions or name in self._is_written:
            return
        size = self._maps[name]
        flat = self._node("Transpose", [self._positions[name]], f"{name}_channels", perm=[0, 2, 1])
        shape = self._constants.add(f"{name}_map", np.array([0, size.channels, size.height, size.width], np.int64))
        self._node("Reshape", [flat, shape], name)
        self._is_written.add(name)

    def _flattens(self, node: NodeProto) -> bool:
        """Whether `node` makes `[batch, channels, height × width]` of a map that is held position by position."""
        if node.op_type != "Reshape" or node.input[0] not in self._positions or node.input[1] not in self._constants:
            return False
        size = self._maps[node.input[0]]
        return self._constants.sizes(node.input[1])[1:] == [size.channels, size.height * size.width]

    def _makes_positions(self, node: NodeProto) -> bool:
        """Whether the output of `node`, whose input is such a flattened map, is held already."""
        if node.op_type != "Transpose" or node.input[0] not in self._flat:
            return False
        return attributes(node)["perm"] == [0, 2, 1] and node.output[0] not in self._outputs

    def _keeps_positions(self, node: NodeProto) -> bool:
        """Whether all inputs are maps of one size, of which one is held position by position already."""
        sizes = {self._maps.get(name) for name in node.input}
        return len(sizes) == 1 and None not in sizes and any(name in self._positions for name in node.input)

    def _apply(self, node: NodeProto) -> None:
        new = with_inputs(node, [self._by_positions(name) for name in node.input])
        new.output[0] = f"{node.output[0]}_positions"
        self._writer.keep(new)
        self._positions[node.output[0]] = new.output[0]

    def _node(self, operator: str, inputs: list[str], output: str, **options: Any) -> str:
        return self._writer.node(operator, inputs, output, **options)
