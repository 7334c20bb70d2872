"""One `Attention` node as operators of opset 18: heads, scores, softmax, sums of values. Its mask is made in `bias.py`.

Source: the specification of ai.onnx Attention-23, -24 and -25 and its reference implementation
(onnx/reference/ops/op_attention.py). Where these differ, on the raw scores of a call with a softcap, the first holds.
"""

from __future__ import annotations

import math
from dataclasses import replace

from onnx import TensorProto

from xattn_export.decompose.bias import MASKED_SCORES, fully_masked_rows, write_bias
from xattn_export.decompose.call import AttentionCall, Operand
from xattn_export.graph.editing import GraphWriter
from xattn_runtime.errors import XattnError

__all__ = ["write_attention"]

# Of the attribute qk_matmul_output_mode.
_WEIGHTS = 3


def write_attention(call: AttentionCall, writer: GraphWriter) -> None:
    """Write what computes every output of `call`, under its name.

    Raises:
        XattnError: heads that do not divide a width, or queries' heads that do not share out among the keys'.
    """
    query = _split_heads(call.query, call.query_heads, call, writer)
    new_key = _split_heads(call.key, call.key_heads, call, writer)
    new_value = _split_heads(call.value, call.key_heads, call, writer)
    key = _append(call.past_key, new_key, call.present_key, writer)
    value = _append(call.past_value, new_value, call.present_value, writer)
    groups = _GroupedQueries(query, key, call, writer)
    bias = write_bias(call, query, new_key, key, writer)
    masked_rows = "" if bias is None else fully_masked_rows(call, bias, writer)
    weights = _weights(call, groups, query, key, bias, masked_rows, writer)
    if value.element not in (call.element, TensorProto.UNDEFINED):
        value = replace(value, name=writer.op("Cast", value.name, to=call.element))
    summed = groups.unfold(writer.op("MatMul", groups.fold(weights), value.name))
    if masked_rows:
        # As wide as the sums are: on AVX2, OpenVINO goes wrong where sums of 48, 72 or 96 columns meet a single one.
        rows = writer.op("Expand", masked_rows, writer.length(value.name, 3, value.size(3)))
        summed = _zero_rows(summed, rows, call, writer)
    if call.packed:
        width = value.size(3)
        joined = call.query_heads * width if isinstance(width, int) else -1
        summed = writer.op("Transpose", summed, perm=(0, 2, 1, 3))
        summed = writer.op("Reshape", summed, writer.constants.integers([0, 0, joined]))
    writer.publish(summed, call.output)


def _weights(
    call: AttentionCall,
    groups: _GroupedQueries,
    query: Operand,
    key: Operand,
    bias: str | None,
    masked_rows: str,
    writer: GraphWriter,
) -> str:
    """Attention weights `[batch, heads, queries, keys]`; on the way the optional output of scores.

    Fully masked rows are zeros where the weights are an output, and those without a mask elsewhere: the sums' rows are
    cleared. So nothing on the way is not a number, which fp16 and some engines would not survive.
    """
    scores = _scores(call, groups, query, key, writer)
    stages = [scores]
    if call.softcap:
        cap = writer.constants.number(call.softcap, call.element)
        scores = writer.op("Mul", writer.op("Tanh", writer.op("Div", scores, cap)), cap)
    stages.append(scores)
    if bias is not None:
        if call.scores_output and call.output_mode == MASKED_SCORES:
            stages.append(writer.op("Add", scores, bias))
        finite = _zero_rows(bias, masked_rows, call, writer) if masked_rows else bias
        scores = writer.op("Add", scores, finite)
    stages.append(scores)
    if call.softmax_element == call.element:
        weights = writer.op("Softmax", scores, axis=-1)
    else:
        weights = writer.op("Softmax", writer.op("Cast", scores, to=call.softmax_element), axis=-1)
        weights = writer.op("Cast", weights, to=call.element)
    if call.scores_output and call.output_mode == _WEIGHTS:
        if masked_rows:
            weights = _zero_rows(weights, masked_rows, call, writer)
        return writer.publish(weights, call.scores_output)
    if call.scores_output:
        writer.publish(stages[call.output_mode], call.scores_output)
    return weights


def _scores(call: AttentionCall, groups: _GroupedQueries, query: Operand, key: Operand, writer: GraphWriter) -> str:
    """Scaled products `[batch, heads, queries, keys]`: each side takes the root of the scale, against overflow."""
    root = _root_of_scale(call, query, writer)
    scaled_query = writer.op("Mul", query.name, root)
    scaled_key = writer.op("Mul", writer.op("Transpose", key.name, perm=(0, 1, 3, 2)), root)
    return groups.unfold(writer.op("MatMul", groups.fold(scaled_query), scaled_key))


def _root_of_scale(call: AttentionCall, query: Operand, writer: GraphWriter) -> str:
    width = query.size(3)
    if call.scale is not None:
        return writer.constants.number(math.sqrt(call.scale), call.element)
    if isinstance(width, int):
        return writer.constants.number(width**-0.25, call.element)
    floating = writer.op("Cast", writer.length(query.name, 3, width), to=TensorProto.FLOAT)
    root = writer.op("Reciprocal", writer.op("Sqrt", writer.op("Sqrt", floating)))
    return root if call.element == TensorProto.FLOAT else writer.op("Cast", root, to=call.element)


def _zero_rows(tensor: str, rows: str, call: AttentionCall, writer: GraphWriter) -> str:
    return writer.op("Where", rows, writer.constants.number(0.0, call.element), tensor)


class _GroupedQueries:
    """Grouped queries: the heads that share a key are laid one below the other, so that no key is repeated."""

    def __init__(self, query: Operand, key: Operand, call: AttentionCall, writer: GraphWriter) -> None:
        query_heads, key_heads = query.size(1), key.size(1)
        if isinstance(query_heads, int) and isinstance(key_heads, int) and (not key_heads or query_heads % key_heads):
            raise XattnError(
                f"Attention {call.name}: expected query heads that are a multiple of the key heads, "
                f"found {query_heads} and {key_heads}"
            )
        self._same = query_heads is not None and query_heads == key_heads
        self._query, self._key, self._writer = query, key, writer

    def fold(self, tensor: str) -> str:
        """`[batch, query heads, queries, n]` → `[batch, key heads, group · queries, n]`."""
        return self._with_heads(tensor, self._key)

    def unfold(self, tensor: str) -> str:
        """The way back."""
        return self._with_heads(tensor, self._query)

    def _with_heads(self, tensor: str, like: Operand) -> str:
        if self._same:
            return tensor
        constants, heads = self._writer.constants, like.size(1)
        if isinstance(heads, int):
            shape = constants.integers([0, heads, -1, 0])
        else:
            parts = constants.integers([0]), self._writer.length(like.name, 1, heads), constants.integers([-1, 0])
            shape = self._writer.op("Concat", *parts, axis=0)
        return self._writer.op("Reshape", tensor, shape)


def _split_heads(operand: Operand, heads: int, call: AttentionCall, writer: GraphWriter) -> Operand:
    """`[batch, heads, length, width]`, of `[batch, length, heads · width]` where the call is packed."""
    if not call.packed:
        return operand
    hidden = operand.size(2)
    if isinstance(hidden, int) and hidden % heads:
        raise XattnError(
            f"Attention {call.name}: {operand.name}: expected a width that {heads} heads divide, found {hidden}"
        )
    width = hidden // heads if isinstance(hidden, int) else None
    shape = writer.constants.integers([0, 0, heads, -1 if width is None else width])
    name = writer.op("Transpose", writer.op("Reshape", operand.name, shape), perm=(0, 2, 1, 3))
    return replace(operand, name=name, shape=(operand.size(0), heads, operand.size(1), width))


def _append(past: Operand | None, new: Operand, present: Operand, writer: GraphWriter) -> Operand:
    """Past and new keys, or values, one after the other, under the name of `present` where it is an output."""
    if past is None:
        writer.publish(new.name, present.name)
        return new
    name = writer.publish(writer.op("Concat", past.name, new.name, axis=2), present.name)
    sizes = past.size(2), new.size(2)
    total = present.size(2)
    if total is None and isinstance(sizes[0], int) and isinstance(sizes[1], int):
        total = sizes[0] + sizes[1]
    heads = past.size(1) if new.size(1) is None else new.size(1)
    width = past.size(3) if new.size(3) is None else new.size(3)
    return Operand(name, new.element, (new.size(0), heads, total, width))
