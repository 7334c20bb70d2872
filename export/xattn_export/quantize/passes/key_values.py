"""Keys and values that go from graph to graph, stored in fp16 or int8: those of cross-attention, and the cache.

In int8 a scale a head and channel is fixed by calibration, so that graphs still hand on single tensors. Where the
operator `Attention` alone reads them, cross keys and values stay bytes to the end: keys' scales go over to the query,
values' to the result, and the two products between are `MatMulInteger`.
https://onnx.ai/onnx/operators/onnx__MatMulInteger.html
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto, TensorProto, ValueInfoProto, helper

from xattn_export.graph.editing import GraphParts, GraphWriter, attributes, with_inputs
from xattn_export.quantize.base.options import KeyValuePrecision

__all__ = ["StoredSeries", "is_transposed", "largest_stored", "series_of", "store_key_values", "stored_name"]

_PASSED_ON: Mapping[str, str] = {
    "cross": "cross",
    "image": "image",
    "past": "past",
    "prefix": "past",
    "present": "past",
}
_KEY_OR_VALUE = ("key", "value")
_LARGEST_STORED = 127
_LARGEST_ATTENDED = 64
"""Of int8, by magnitude, of what attention multiplies with bytes: x86 without VNNI sums two products in 16 bits."""
_LARGEST_BYTE = 255
_TYPES: Mapping[KeyValuePrecision, int] = {"fp16": TensorProto.FLOAT16, "int8": TensorProto.INT8}


@dataclass(frozen=True)
class StoredSeries:
    """How one tensor of keys or values is stored, under whatever name a graph has it.

    scales: int8 only: float32 `[heads, head_width]`. transposed: whether it is `[batch, heads, head_width, tokens]`.
    """

    precision: KeyValuePrecision
    scales: NDArray[np.float32] | None = None
    transposed: bool = False

    @property
    def factors(self) -> NDArray[np.float32]:
        """The scales beside `[batch, heads, tokens, head_width]`."""
        return np.ones((1, 1, 1, 1), np.float32) if self.scales is None else self.scales[None, :, None, :]


def series_of(name: str) -> str | None:
    """`cross`, `image`, `past`, `prefix` or `present` where `name` is a key or value of that series, else None."""
    parts = name.split("_")
    is_one = len(parts) == 3 and parts[0] in _PASSED_ON and parts[1] in _KEY_OR_VALUE and parts[2].isdigit()
    return parts[0] if is_one else None


def stored_name(name: str) -> str:
    """Under which name a key or value is known to all graphs: cache and prefix are one, `past_key_0` and so on."""
    series, rest = name.split("_", 1)
    return f"{_PASSED_ON[series]}_{rest}"


def largest_stored(name: str) -> int:
    """The largest magnitude of the bytes that the key or value `name` is stored as."""
    return _LARGEST_STORED if stored_name(name).startswith("past_") else _LARGEST_ATTENDED


def is_transposed(graph: GraphParts, name: str) -> bool:
    """Whether the graph, of which the key `name` is an input, computes its attention in int8 when that is int8."""
    is_cross = series_of(name) in ("cross", "image")
    return is_cross and "_key_" in name and any(_byte_attention(node, graph, name) for node in graph.nodes)


def store_key_values(graph: GraphParts, stored: Mapping[str, StoredSeries]) -> tuple[GraphParts, frozenset[str]]:
    """`graph` with its keys and values `stored`, by their `stored_name`, in that precision.

    And the names of the nodes that this added and that compute in int8 or prepare it; none of them may become fp16.
    """
    if not any(stored_name(value.name) in stored for value in _key_values(graph)):
        return graph, frozenset()
    rewriter = _StoredWriter(graph, stored)
    for node in graph.nodes:
        rewriter.add(node)
    return rewriter.finished()


def _key_values(graph: GraphParts) -> Iterable[ValueInfoProto]:
    return (value for value in (*graph.inputs, *graph.outputs) if series_of(value.name))


def _byte_attention(node: NodeProto, graph: GraphParts, name: str) -> bool:
    """Whether `node` attends with the key or value `name`, all of it, as it is input to the graph, and nothing else."""
    if node.op_type != "Attention" or name not in node.input or len(node.output) != 1:
        return False
    options = attributes(node)
    is_plain = not (options.get("is_causal") or options.get("softcap") or "q_num_heads" in options)
    pair = {name, name.replace("_key_", "_value_"), name.replace("_value_", "_key_")}
    names = [entry for entry in node.input if entry]
    return is_plain and len(names) == 3 and set(names[1:]) == pair and _are_read_alone(graph, pair)


def _are_read_alone(graph: GraphParts, names: set[str]) -> bool:
    """Whether only `Attention` reads the values of `names`, and whatever else does, no more than batch and heads."""
    for node in graph.nodes:
        if names.intersection(node.input) and node.op_type != "Attention":
            ends = attributes(node).get("end")
            if node.op_type != "Shape" or not isinstance(ends, int) or not 0 <= ends <= 2:
                return False
    return True


class _StoredWriter:
    """Writes the nodes anew, and the inputs and outputs in their precision."""

    def __init__(self, graph: GraphParts, stored: Mapping[str, StoredSeries]) -> None:
        self._graph = graph
        self._writer = GraphWriter(graph.constants())
        self._stored = {
            value.name: stored[stored_name(value.name)]
            for value in _key_values(graph)
            if stored_name(value.name) in stored
        }
        self._inputs = {value.name for value in graph.inputs}
        self._outputs = {value.name for value in graph.outputs}
        self._restored: dict[str, str] = {}
        self._added: set[str] = set()

    def add(self, node: NodeProto) -> None:
        """`node`, or its replacement."""
        read = [name for name in node.input if name in self._stored and name in self._inputs]
        if len(read) == 2 and all(self._is_int8(name) and _byte_attention(node, self._graph, name) for name in read):
            self._attend(node)
            return
        inputs = list(node.input)
        if node.op_type != "Shape":
            inputs = [self._restore(name) if name in read else name for name in inputs]
        new = with_inputs(node, inputs)
        for names in (new.input, new.output):
            names[:] = [f"{name}_float" if self._is_output(name) else name for name in names]
        self._writer.keep(new)

    def finished(self) -> tuple[GraphParts, frozenset[str]]:
        """The graph, and the names of the nodes that must stay in fp32."""
        for value in self._graph.outputs:
            if self._is_output(value.name):
                self._store(value.name)
        frame = ModelProto()
        frame.CopyFrom(self._graph.frame)
        for value in (*frame.graph.input, *frame.graph.output):
            if value.name in self._stored:
                self._retype(value)
        return self._graph.rewritten(self._writer, frame), frozenset(self._added)

    def _is_int8(self, name: str) -> bool:
        return self._stored[name].precision == "int8"

    def _is_output(self, name: str) -> bool:
        return name in self._stored and name in self._outputs

    def _restore(self, name: str) -> str:
        """An input of the graph, as float32."""
        if name not in self._restored:
            one = self._stored[name]
            restored = self._node("Cast", [name], f"{name}_restored", to=TensorProto.FLOAT)
            if one.precision == "int8":
                restored = self._node("Mul", [restored, self._factors(name, one.factors)], f"{name}_scaled")
            self._restored[name] = restored
        return self._restored[name]

    def _store(self, name: str) -> None:
        """An output of the graph, from float32 `NAME_float`: all of it, or of a cache what is new."""
        one, source = self._stored[name], f"{name}_float"
        past = name.replace("present_", "past_", 1) if name.startswith("present_") else ""
        if past:
            length = self._node("Shape", [past], f"{name}_before", start=2, end=3)
            last = self._writer.constants.add(f"{name}_last", np.array([np.iinfo(np.int64).max], np.int64))
            axis = self._writer.constants.add(f"{name}_axis", np.array([2], np.int64))
            source = self._node("Slice", [source, length, last, axis], f"{name}_new")
        output = f"{name}_stored" if past else name
        if one.precision == "fp16":
            source = self._node("Cast", [source], output, to=TensorProto.FLOAT16)
        else:
            source = self._node("Mul", [source, self._factors(f"{name}_inverse", 1 / one.factors)], f"{name}_steps")
            if one.transposed:
                source = self._node("Transpose", [source], f"{name}_turned", perm=[0, 1, 3, 2])
            source = self._quantized(source, output, np.float32(1), np.int8(0))
        if past:
            self._node("Concat", [past, source], name, axis=2)

    def _attend(self, node: NodeProto) -> None:
        """Attention with keys `[batch, heads, head_width, tokens]` and values as bytes.

        Weights are quantized before they are divided by their sum, when the largest of each row is 1: so every head has
        the same steps.
        """
        query, key, value = node.input[:3]
        output, width = node.output[0], self._stored[key].factors.shape[-1]
        share = np.float32(attributes(node).get("scale", width**-0.5))  # type: ignore[arg-type]
        factors = self._factors(f"{output}_key_scale", self._stored[key].factors * share)
        scaled = self._node("Mul", [query, factors], f"{output}_query")
        names = [f"{output}_query_{part}" for part in ("bytes", "bytes_scale", "bytes_zero_point")]
        self._append(helper.make_node("DynamicQuantizeLinear", [scaled], names, name=names[0]))
        sums = self._node("MatMulInteger", [names[0], key, names[2]], f"{output}_sums")
        logits = self._node("Mul", [self._to_float(sums), names[1]], f"{output}_logits")
        axis = self._writer.constants.add(f"{output}_axis", np.array([-1], np.int64))
        largest = self._node("ReduceMax", [logits, axis], f"{output}_largest", keepdims=1)
        below = self._node("Sub", [logits, largest], f"{output}_below")
        weights = self._node("Exp", [below], f"{output}_weights")
        steps = self._quantized(weights, f"{output}_steps", np.float32(1 / _LARGEST_BYTE), np.uint8(0))
        total = self._node("ReduceSum", [self._to_float(steps), axis], f"{output}_total", keepdims=1)
        products = self._to_float(self._node("MatMulInteger", [steps, value], f"{output}_products"))
        mean = self._node("Div", [products, total], f"{output}_mean")
        value_factors = self._factors(f"{output}_value_scale", self._stored[value].factors)
        self._append(helper.make_node("Mul", [mean, value_factors], [output], name=node.name))

    def _to_float(self, name: str) -> str:
        return self._node("Cast", [name], f"{name}_float", to=TensorProto.FLOAT)

    def _quantized(self, source: str, output: str, scale: np.float32, zero: np.int8 | np.uint8) -> str:
        scale_name = self._writer.constants.add(f"{output}_step", np.array(scale))
        zero_name = self._writer.constants.add(f"{output}_zero_point", np.array(zero))
        return self._node("QuantizeLinear", [source, scale_name, zero_name], output)

    def _factors(self, name: str, values: NDArray[np.floating]) -> str:
        return self._writer.constants.add(f"{name}_factors", values.astype(np.float32))

    def _node(self, operator: str, inputs: list[str], output: str, **options: Any) -> str:
        self._append(helper.make_node(operator, inputs, [output], name=output, **options))
        return output

    def _append(self, node: NodeProto) -> None:
        self._writer.keep(node)
        self._added.add(node.name)

    def _retype(self, value: ValueInfoProto) -> None:
        one, tensor = self._stored[value.name], value.type.tensor_type
        tensor.elem_type = _TYPES[one.precision]
        if one.transposed:
            axes = [type(axis).FromString(axis.SerializeToString()) for axis in tensor.shape.dim]
            del tensor.shape.dim[:]
            tensor.shape.dim.extend([axes[0], axes[1], axes[3], axes[2]])
