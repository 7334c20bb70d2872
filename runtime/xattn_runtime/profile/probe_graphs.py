"""Graphs of one matrix product, written as ONNX's own bytes: the runtime has no `onnx` to write them with.

Source: the messages of onnx.proto (ModelProto, GraphProto, NodeProto, TensorProto) in Protocol Buffers' encoding.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

__all__ = ["product_graph"]

_IR_VERSION, _OPSET = 8, 18
_VARINT, _BYTES = 0, 2
_ELEMENTS = {"float32": 1, "uint8": 2, "int8": 3, "int32": 6, "float16": 10}


def product_graph(rows: int, weight: NDArray[np.generic]) -> bytes:
    """An ONNX model that multiplies `x` `[rows, inner]` with `weight` `[inner, columns]` to `y`.

    float32 and float16 weights by MatMul; int8 ones by MatMulInteger with uint8 `x`, sums in int32.
    """
    integer = weight.dtype == np.int8
    name = "MatMulInteger" if integer else "MatMul"
    found, given = ("uint8", "int32") if integer else (str(weight.dtype), str(weight.dtype))
    node = _text(1, "x") + _text(1, "w") + _text(2, "y") + _text(4, name)
    inner, columns = weight.shape
    graph = (
        _field(1, node)
        + _text(2, "product")
        + _field(5, _tensor(weight))
        + _field(11, _value("x", found, (rows, inner)))
        + _field(12, _value("y", given, (rows, columns)))
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
