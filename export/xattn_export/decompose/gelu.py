"""One `Gelu` as operators of opset 18, in the order in which engines recognise it and fuse it again.

The function by which the standard defines it casts its constants at run time, and none fuses that.
Source: the specification of ai.onnx Gelu-20.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import onnx
from onnx import NodeProto, TypeProto

from xattn_export.graph.editing import GraphWriter
from xattn_runtime.errors import XattnError

__all__ = ["write_gelu"]

_CUBE_FACTOR = 0.044715


def write_gelu(node: NodeProto, types: Mapping[str, TypeProto], writer: GraphWriter) -> None:
    """Write what computes the output of `node`, under its name.

    Raises:
        XattnError: the element type of its input is not known.
    """
    (x,), (output,) = node.input, node.output
    if x not in types:
        raise XattnError(f"Gelu {node.name or output}: expected an input of a known element type, found none for {x}")
    element = types[x].tensor_type.elem_type
    settings = {attribute.name: onnx.helper.get_attribute_value(attribute) for attribute in node.attribute}

    def number(value: float) -> str:
        return writer.constants.number(value, element)

    if settings.get("approximate") == b"tanh":
        cubed = writer.op("Mul", writer.op("Pow", x, number(3.0)), number(_CUBE_FACTOR))
        inner = writer.op("Mul", writer.op("Add", x, cubed), number(math.sqrt(2 / math.pi)))
        share = writer.op("Add", writer.op("Tanh", inner), number(1.0))
        writer.publish(writer.op("Mul", writer.op("Mul", x, number(0.5)), share), output)
    else:
        error = writer.op("Erf", writer.op("Div", x, number(math.sqrt(2))))
        weighted = writer.op("Mul", x, writer.op("Add", error, number(1.0)))
        writer.publish(writer.op("Mul", weighted, number(0.5)), output)
