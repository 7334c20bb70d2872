"""Graphs to measure the device by, written as ONNX's own bytes: the runtime has no `onnx` to write them with.

Source: the messages of onnx.proto (ModelProto, GraphProto, NodeProto, TensorProto) in Protocol Buffers' encoding.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

__all__ = ["REFERENCE_INPUTS", "product_graph", "reference_graph"]

_IR_VERSION, _OPSET = 8, 18
_VARINT, _BYTES = 0, 2
_ELEMENTS = {"float32": 1, "uint8": 2, "int8": 3, "int32": 6, "float16": 10}
REFERENCE_INPUTS = {"x": (32, 256), "few": (1, 32)}
"""Name → shape of what `reference_graph` takes, all of float32."""
_PRODUCTS, _SMALL_NODES = 6, 120


def product_graph(rows: int, weight: NDArray[np.generic]) -> bytes:
    """An ONNX model that multiplies `x` `[rows, inner]` with `weight` `[inner, columns]` to `y`.

    float32 and float16 weights by MatMul; int8 ones by MatMulInteger with uint8 `x`, sums in int32.
    """
    integer = weight.dtype == np.int8
    name = "MatMulInteger" if integer else "MatMul"
    input_dtype, output_dtype = ("uint8", "int32") if integer else (str(weight.dtype), str(weight.dtype))
    inner, columns = weight.shape
    inputs, outputs = {"x": (input_dtype, (rows, inner))}, {"y": (output_dtype, (rows, columns))}
    return _model([_node(name, ["x", "w"], "y")], weight, inputs, outputs)


def reference_graph() -> bytes:
    """An ONNX model of what every bundle does, that takes half a millisecond or so and 256 KiB of weights.

    `x` goes through products, activations and a softmax to `y`; `few` through many nodes that do next to nothing, to
    `less`. Both keep their shapes.
    """
    inner = REFERENCE_INPUTS["x"][1]
    weight = np.random.default_rng(0).normal(0, inner**-0.5, (inner, inner)).astype(np.float32)
    kinds = [*(["MatMul", "Tanh"] * _PRODUCTS), "Softmax", "Erf"]
    nodes = _chain("x", kinds, "y") + _chain("few", ["Tanh", "Sigmoid"] * (_SMALL_NODES // 2), "less")
    shapes = {name: ("float32", shape) for name, shape in REFERENCE_INPUTS.items()}
    return _model(nodes, weight, shapes, {"y": shapes["x"], "less": shapes["few"]})


_Values = Mapping[str, tuple[str, tuple[int, ...]]]


def _chain(first: str, operators: Sequence[str], last: str) -> list[bytes]:
    """Nodes one after another; products are with `w`."""
    names = [first, *(f"{last}{number}" for number in range(1, len(operators))), last]
    return [
        _node(operator, [name, "w"] if operator == "MatMul" else [name], result)
        for operator, (name, result) in zip(operators, pairwise(names), strict=True)
    ]


def _node(operator: str, inputs: Sequence[str], output: str) -> bytes:
    return b"".join(_text(1, name) for name in inputs) + _text(2, output) + _text(4, operator)


def _model(nodes: Sequence[bytes], weight: NDArray[np.generic], inputs: _Values, outputs: _Values) -> bytes:
    graph = (
        b"".join(_field(1, node) for node in nodes)
        + _text(2, "probe")
        + _field(5, _tensor(weight))
        + b"".join(_field(11, _value(name, *what)) for name, what in inputs.items())
        + b"".join(_field(12, _value(name, *what)) for name, what in outputs.items())
    )
    return _number(1, _IR_VERSION) + _field(7, graph) + _field(8, _number(2, _OPSET))


def _tensor(values: NDArray[np.generic]) -> bytes:
    axes = b"".join(_number(1, axis) for axis in values.shape)
    return axes + _number(2, _ELEMENTS[str(values.dtype)]) + _text(8, "w") + _field(9, values.tobytes())


def _value(name: str, dtype: str, shape: tuple[int, ...]) -> bytes:
    axes = b"".join(_field(1, _number(1, axis)) for axis in shape)
    return _text(1, name) + _field(2, _field(1, _number(1, _ELEMENTS[dtype]) + _field(2, axes)))


def _number(field: int, value: int) -> bytes:
    return _varint(field << 3 | _VARINT) + _varint(value)


def _text(field: int, value: str) -> bytes:
    return _field(field, value.encode())


def _field(field: int, content: bytes) -> bytes:
    return _varint(field << 3 | _BYTES) + _varint(len(content)) + content


def _varint(value: int) -> bytes:
    parts = bytearray()
    while value > 0x7F:
        parts.append(value & 0x7F | 0x80)
        value >>= 7
    parts.append(value)
    return bytes(parts)
