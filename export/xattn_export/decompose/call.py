"""What one `Attention` node asks for: its operands with their types, its attributes, its outputs. Writes nothing.

Attributes and operands are those of ai.onnx Attention of opsets 23, 24 (`nonpad_kv_seqlen`) and 25 (windows).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import onnx
from onnx import NodeProto, TensorProto, TypeProto

from xattn_export.graph.conformance import FLOATING
from xattn_export.graph.editing import Dimension
from xattn_runtime.errors import XattnError

__all__ = ["AttentionCall", "Operand", "read_call"]

_ATTRIBUTES = frozenset(
    {
        *("scale", "is_causal", "q_num_heads", "kv_num_heads", "softcap", "softmax_precision"),
        *("qk_matmul_output_mode", "left_window_size", "right_window_size"),
    }
)


@dataclass(frozen=True)
class Operand:
    """A tensor as far as it is known before it exists: ONNX element type, axes; `shape` is None for an unknown rank."""

    name: str
    element: int = TensorProto.UNDEFINED
    shape: tuple[Dimension, ...] | None = None

    def size(self, axis: int) -> Dimension:
        """Of one axis, None where it is not known."""
        if self.shape is None or not -len(self.shape) <= axis < len(self.shape):
            return None
        return self.shape[axis]


@dataclass(frozen=True)
class AttentionCall:
    """One node.

    name: for messages and for the names of what takes its place.
    opset: that the node is read by.
    element: ONNX element type of query, key and most outputs (T1 of the specification).
    packed: the heads lie side by side in the last axis of query, key and value, which are 3D.
    query_heads, key_heads: of packed operands.
    scale: of the scores; None for 1 / sqrt(head size).
    softcap: 0 for none.
    softmax_element: ONNX element type in which softmax is computed.
    keys_after, keys_before: how many keys after and before its own place a query may see; None for all of them.
    output_mode: what `scores_output` is: 0 raw, 1 capped, 2 masked as well, 3 after softmax.
    """

    name: str
    opset: int
    element: int
    packed: bool
    query: Operand
    key: Operand
    value: Operand
    mask: Operand | None
    past_key: Operand | None
    past_value: Operand | None
    key_counts: Operand | None
    output: str
    present_key: Operand
    present_value: Operand
    scores_output: str
    query_heads: int
    key_heads: int
    scale: float | None
    softcap: float
    softmax_element: int
    keys_after: int | None
    keys_before: int | None
    output_mode: int


def read_call(node: NodeProto, types: Mapping[str, TypeProto], opset: int) -> AttentionCall:
    """Read `node`, with the types of the tensors in its graph.

    Raises:
        XattnError: it breaks the specification, or the type of a tensor that must be known is not.
    """
    name = node.name or node.output[0]
    settings = _settings(node, name)
    tensors = [_operand(tensor, types) for tensor in node.input] + [None] * 7
    query, key, value, mask, past_key, past_value, key_counts = tensors[:7]
    if query is None or key is None or value is None:
        raise XattnError(f"Attention {name}: expected query, key and value, found {len(node.input)} inputs")
    if (past_key is None) != (past_value is None):
        raise XattnError(f"Attention {name}: expected past_key and past_value together, found one of them")
    if past_key is not None and key_counts is not None:
        raise XattnError(f"Attention {name}: expected past_key or nonpad_kv_seqlen, found both")
    output, present_key, present_value, scores = [
        _operand(tensor, types) or Operand("") for tensor in (*node.output, "", "", "")[:4]
    ]
    element = _element(name, query, key, past_key, output, present_key, scores)
    if mask is not None and mask.element == TensorProto.UNDEFINED:
        raise XattnError(f"Attention {name}: expected a mask of a known element type, found none for {mask.name}")
    packed = _packed(settings, query, key, value, output)
    heads = (int(settings.get("q_num_heads", 0)), int(settings.get("kv_num_heads", 0)))
    if packed and min(heads) <= 0:
        raise XattnError(f"Attention {name}: expected q_num_heads and kv_num_heads with 3D inputs, found {heads}")
    scale = settings.get("scale")
    if scale is not None and scale < 0:
        raise XattnError(f"Attention {name}: expected a scale of 0 or more, found {scale:g}")
    keys_after, keys_before = (int(settings.get(side, -1)) for side in ("right_window_size", "left_window_size"))
    return AttentionCall(
        name=name,
        opset=opset,
        element=element,
        packed=packed,
        query=query,
        key=key,
        value=value,
        mask=mask,
        past_key=past_key,
        past_value=past_value,
        key_counts=key_counts,
        output=output.name,
        present_key=present_key,
        present_value=present_value,
        scores_output=scores.name,
        query_heads=heads[0],
        key_heads=heads[1],
        scale=scale,
        softcap=max(0.0, settings.get("softcap", 0.0)),
        softmax_element=int(settings.get("softmax_precision", element)),
        keys_after=0 if settings.get("is_causal", 0) else None if keys_after < 0 else keys_after,
        keys_before=None if keys_before < 0 else keys_before,
        output_mode=int(settings.get("qk_matmul_output_mode", 0)),
    )


def _settings(node: NodeProto, name: str) -> dict[str, float]:
    settings: dict[str, float] = {}
    for attribute in node.attribute:
        if attribute.name not in _ATTRIBUTES:
            raise XattnError(f"Attention {name}: expected the attributes of opsets 23 to 25, found {attribute.name}")
        if attribute.ref_attr_name:
            raise XattnError(f"Attention {name}: {attribute.name}: expected a number, found a function's parameter")
        settings[attribute.name] = onnx.helper.get_attribute_value(attribute)
    if settings.get("qk_matmul_output_mode", 0) not in (0, 1, 2, 3):
        mode = settings["qk_matmul_output_mode"]
        raise XattnError(f"Attention {name}: expected a qk_matmul_output_mode of 0 to 3, found {mode}")
    if settings.get("softmax_precision", TensorProto.FLOAT) not in FLOATING:
        precision = settings["softmax_precision"]
        raise XattnError(
            f"Attention {name}: expected a floating-point softmax_precision, found element type {precision}"
        )
    return settings


def _operand(name: str, types: Mapping[str, TypeProto]) -> Operand | None:
    """The tensor of that name; None for the empty name of what was left out."""
    if not name:
        return None
    if name not in types or not types[name].HasField("tensor_type"):
        return Operand(name)
    tensor = types[name].tensor_type
    if not tensor.HasField("shape"):
        return Operand(name, tensor.elem_type)
    return Operand(name, tensor.elem_type, tuple(_dimension(axis) for axis in tensor.shape.dim))


def _dimension(axis: onnx.TensorShapeProto.Dimension) -> Dimension:
    return axis.dim_value if axis.HasField("dim_value") else axis.dim_param or None


def _element(name: str, *operands: Operand | None) -> int:
    """The element type that they share."""
    for operand in operands:
        if operand is not None and operand.element != TensorProto.UNDEFINED:
            return operand.element
    raise XattnError(f"Attention {name}: expected inputs of a known element type, found none for its query")


def _packed(settings: Mapping[str, float], *operands: Operand) -> bool:
    """Whether they are 3D. Where no rank is known, numbers of heads decide: only 3D inputs have them."""
    ranks = [len(operand.shape) for operand in operands if operand.shape is not None]
    return ranks[0] == 3 if ranks else "q_num_heads" in settings
