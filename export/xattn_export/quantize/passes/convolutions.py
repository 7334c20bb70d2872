"""Dynamic int8 convolutions: a convolution becomes a gathering of rows and `MatMulInteger`.

ONNX Runtime computes `ConvInteger` more slowly than the convolution in float32, but int8 products fast. So the feature
map is held position by position, `[batch, height × width, channels]`, quantized, and the rows under each place of the
kernel are gathered as bytes (im2col: Chellapilla et al., 2006). Between two such convolutions it stays so.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import GraphProto, ModelProto, NodeProto, helper, shape_inference

from xattn_export.quantize.base.layers import FEWEST_WEIGHTS, is_chosen
from xattn_export.quantize.base.prepare import Constants, attributes, write_nodes
from xattn_export.quantize.base.rounding import round_weights
from xattn_export.quantize.passes.products import COLUMNS, integer_product

__all__ = ["quantize_convolutions"]

# Narrower maps are computed as fast in float32, and the picture itself keeps its precision.
_FEWEST_CHANNELS = 64
_ELEMENTWISE = {"Relu", "Add", "Mul", "Gelu", "Sigmoid"}


def quantize_convolutions(model: ModelProto, folder: Path | None = None, *, only: Collection[str] | None = None) -> int:
    """Compute convolutions over wide maps of a fixed size in int8, a scale an output channel, in place; how many.

    Left as they are: convolutions in groups, dilated ones, those over fewer than 32 channels. `folder`: where weights
    lie that are beside the graph. `only`: the layers to change, by name.
    """
    maps = _map_shapes(model)
    constants = Constants(model.graph, folder)
    asked = [node for node in model.graph.node if is_chosen(node, only)]
    chosen = {node.output[0]: conv for node in asked if (conv := _convolution(node, constants, maps))}
    if not chosen:
        return 0
    rewriter = _Rewriter(model.graph, constants, maps)
    for node in model.graph.node:
        rewriter.add(node, chosen.get(node.output[0]))
    rewriter.finish()
    return len(chosen)


@dataclass(frozen=True)
class _Map:
    """The static axes of a feature map `[batch, channels, height, width]`."""

    channels: int
    height: int
    width: int


@dataclass(frozen=True)
class _Convolution:
    """kernel, strides: height and width. pads: top and left. found, given: the maps that it takes and gives."""

    kernel: tuple[int, int]
    strides: tuple[int, int]
    pads: tuple[int, int]
    found: _Map
    given: _Map

    def rows(self) -> NDArray[np.int64]:
        """The row of the map for each position of the result and place of the kernel; one past the last for zeros."""
        axes = []
        for axis, (size, out) in enumerate(
            ((self.found.height, self.given.height), (self.found.width, self.given.width))
        ):
            index = np.arange(out)[:, None] * self.strides[axis] - self.pads[axis] + np.arange(self.kernel[axis])
            axes.append(np.where((index >= 0) & (index < size), index, -1))
        down, across = axes[0][:, None, :, None], axes[1][None, :, None, :]
        outside = self.found.height * self.found.width
        rows = np.where((down < 0) | (across < 0), outside, down * self.found.width + across)
        return rows.reshape(-1).astype(np.int64)


def _map_shapes(model: ModelProto) -> dict[str, _Map]:
    """The feature maps whose size is known."""
    graph = shape_inference.infer_shapes(model).graph
    maps = {}
    for value in (*graph.value_info, *graph.input, *graph.output):
        sizes = [axis.dim_value for axis in value.type.tensor_type.shape.dim]
        if len(sizes) == 4 and all(size > 0 for size in sizes[1:]):
            maps[value.name] = _Map(*sizes[1:])
    return maps


def _convolution(node: NodeProto, constants: Constants, maps: dict[str, _Map]) -> _Convolution | None:
    """What is to be computed, None where it stays as it is."""
    if node.op_type != "Conv" or not constants.is_float(node.input[1], 4):
        return None
    found, given = maps.get(node.input[0]), maps.get(node.output[0])
    if found is None or given is None or found.channels < _FEWEST_CHANNELS:
        return None
    options, kernel = attributes(node), constants.dims(node.input[1])
    is_plain = (
        options.get("group", 1) == 1
        and set(options.get("dilations", [1])) == {1}  # type: ignore[call-overload]
        and options.get("auto_pad", b"NOTSET") == b"NOTSET"
        and constants.elements(node.input[1]) >= FEWEST_WEIGHTS
    )
    if not is_plain:
        return None
    strides, pads = options.get("strides", [1, 1]), options.get("pads", [0, 0, 0, 0])
    return _Convolution((kernel[2], kernel[3]), tuple(strides), tuple(pads[:2]), found, given)  # type: ignore[arg-type, index]


class _Rewriter:
    """Writes the nodes anew, one after the other, and knows which maps are held position by position."""

    def __init__(self, graph: GraphProto, constants: Constants, maps: dict[str, _Map]) -> None:
        self._graph = graph
        self._constants = constants
        self._maps = maps
        self._nodes: list[NodeProto] = []
        self._positions: dict[str, str] = {}
        self._quantized: dict[str, tuple[str, str, str]] = {}
        self._flat: dict[str, NodeProto] = {}
        self._renamed: dict[str, str] = {}
        self._outputs = {tensor.name for tensor in graph.output}
        self._is_written = {tensor.name for tensor in graph.input}

    def add(self, node: NodeProto, convolution: _Convolution | None) -> None:
        """`node`, or what stands for it."""
        for place, name in enumerate(node.input):
            node.input[place] = self._renamed.get(name, name)
        if convolution is not None:
            self._convolve(node, convolution)
        elif node.op_type in _ELEMENTWISE and self._goes_by_positions(node):
            self._apply(node)
        elif self._flattens(node):
            self._flat[node.output[0]] = node
        elif self._gives_positions(node):
            self._renamed[node.output[0]] = self._positions[self._flat[node.input[0]].input[0]]
        else:
            self._keep(node)

    def finish(self) -> None:
        """Put the nodes and constants into the graph."""
        for output in self._graph.output:
            self._write_map(output.name)
        write_nodes(self._graph, self._nodes)
        self._constants.write_back()

    def _keep(self, node: NodeProto) -> None:
        """The node as it is, after what it reads."""
        for name in node.input:
            if name in self._flat:
                self._keep(self._flat.pop(name))
            self._write_map(name)
        self._nodes.append(node)
        self._is_written.update(node.output)

    def _convolve(self, node: NodeProto, convolution: _Convolution) -> None:
        values, zero, scale = self._quantize(node.input[0])
        output, found, given = node.output[0], convolution.found, convolution.given
        places = convolution.kernel[0] * convolution.kernel[1]
        rows = self._constants.add(f"{output}_rows", convolution.rows())
        values = self._node("Gather", [values, rows], f"{output}_gathered", axis=1)
        shape = self._constants.add(
            f"{output}_columns", np.array([0, given.height * given.width, places * found.channels], np.int64)
        )
        values = self._node("Reshape", [values, shape], f"{output}_patches")
        weights = self._constants.values(node.input[1]).transpose(0, 2, 3, 1).reshape(given.channels, -1)
        rounded = round_weights(weights.T, COLUMNS, "fitted")
        weight = self._constants.add(f"{node.input[1]}_int8", rounded.values.astype(np.int8))
        weight_scale = self._constants.add(f"{node.input[1]}_channel_scale", rounded.scales[0])
        weight_zero = self._constants.add(f"{node.input[1]}_zero_point", np.zeros((), np.int8))
        factor, found_name = (weight, weight_scale, weight_zero), f"{output}_scaled"
        self._nodes += integer_product((values, scale, zero), factor, output, found_name, found_name)
        if len(node.input) > 2:
            found_name = self._node("Add", [found_name, node.input[2]], f"{output}_biased")
        self._positions[output] = found_name

    def _quantize(self, name: str) -> tuple[str, str, str]:
        """The map as bytes, with a row of zeros after the last, its zero point and its scale; once for all readers."""
        if name not in self._quantized:
            positions = self._by_positions(name)
            values, scale, zero = (f"{name}_{part}" for part in ("bytes", "bytes_scale", "bytes_zero_point"))
            self._nodes.append(
                helper.make_node("DynamicQuantizeLinear", [positions], [values, scale, zero], name=values)
            )
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

    def _gives_positions(self, node: NodeProto) -> bool:
        """Whether `node` makes of such a flattened map what is there already."""
        if node.op_type != "Transpose" or node.input[0] not in self._flat:
            return False
        return attributes(node)["perm"] == [0, 2, 1] and node.output[0] not in self._outputs

    def _goes_by_positions(self, node: NodeProto) -> bool:
        """Whether all inputs are maps of one size, of which one is held position by position already."""
        sizes = {self._maps.get(name) for name in node.input}
        return len(sizes) == 1 and None not in sizes and any(name in self._positions for name in node.input)

    def _apply(self, node: NodeProto) -> None:
        new = NodeProto.FromString(node.SerializeToString())
        for place, name in enumerate(node.input):
            new.input[place] = self._by_positions(name)
        new.output[0] = f"{node.output[0]}_positions"
        self._nodes.append(new)
        self._positions[node.output[0]] = new.output[0]

    def _node(self, operator: str, inputs: list[str], output: str, **options: Any) -> str:
        self._nodes.append(helper.make_node(operator, inputs, [output], name=output, **options))
        return output
