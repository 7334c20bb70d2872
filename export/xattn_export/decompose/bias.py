"""What is added to the scores of an `Attention`: its mask, causality, windows and padding, as one tensor of 0 and less.

Source: the specification of ai.onnx Attention-23, -24 and -25.
"""

from __future__ import annotations

import numpy as np
from onnx import TensorProto

from xattn_export.decompose.call import AttentionCall, Operand
from xattn_export.graph.editing import GraphWriter

__all__ = ["MASKED_SCORES", "fully_masked_rows", "write_bias"]

MASKED_SCORES = 2
"""Of the attribute qk_matmul_output_mode: the scores after the mask, which shows what was added to them."""

_FIRST_PADDED_OPSET = 24
_LOWEST: dict[int, float] = {
    TensorProto.FLOAT: float(np.finfo(np.float32).min),
    TensorProto.FLOAT16: float(np.finfo(np.float16).min),
    TensorProto.DOUBLE: float(np.finfo(np.float64).min),
    TensorProto.BFLOAT16: -(2.0 - 2.0**-7) * 2.0**127,
}


def write_bias(call: AttentionCall, query: Operand, new_key: Operand, key: Operand, writer: GraphWriter) -> str | None:
    """The bias, of the call's element type, that broadcasts to `[batch, heads, queries, keys]`; None for no bias.

    Args:
        query: `[batch, heads, queries, width]`.
        new_key: `[batch, heads, new keys, width]`, without the past.
        key: `[batch, heads, keys, width]`, with it.
    """
    allowed = _allowed(call, query, new_key, key, writer)
    bias = None if call.mask is None else _mask_bias(call, call.mask, key, writer)
    if allowed is None:
        return bias
    nothing = writer.constants.number(0.0, call.element)
    return writer.op("Where", allowed, nothing if bias is None else bias, _never(call, writer))


def fully_masked_rows(call: AttentionCall, bias: str, writer: GraphWriter) -> str:
    """bool `[…, queries, 1]`: true for a query that may see no key; empty where there is no such query."""
    if call.mask is None and call.key_counts is None and call.keys_before is None:
        return ""  # causal alone: the first key is before every query
    highest = writer.op("ReduceMax", bias, writer.constants.integers([-1]), keepdims=1)
    return writer.op("LessOrEqual", highest, writer.constants.number(_LOWEST[call.element], call.element))


def _mask_bias(call: AttentionCall, mask: Operand, key: Operand, writer: GraphWriter) -> str:
    if mask.element == TensorProto.BOOL:
        nothing = writer.constants.number(0.0, call.element)
        bias = writer.op("Where", mask.name, nothing, _never(call, writer))
    elif mask.element == call.element:
        bias = mask.name
    else:
        bias = writer.op("Cast", mask.name, to=call.element)
    if not _may_be_short(call, mask, key):
        return bias
    missing = writer.op("Sub", writer.length(key.name, 2, key.size(2)), writer.length(mask.name, -1, mask.size(-1)))
    pads = writer.op("Concat", writer.constants.integers([0]), missing, axis=0)
    return writer.op("Pad", bias, pads, _never(call, writer), writer.constants.integers([-1]))


def _may_be_short(call: AttentionCall, mask: Operand, key: Operand) -> bool:
    """Whether the mask may end before the keys do, so that those beyond it are masked: from opset 24 on."""
    length, total = mask.size(-1), key.size(2)
    return call.opset >= _FIRST_PADDED_OPSET and (length is None or length != total)


def _allowed(call: AttentionCall, query: Operand, new_key: Operand, key: Operand, writer: GraphWriter) -> str | None:
    """bool `[batch or nothing, 1, queries, keys]`: which keys the places of query and key allow; None for all."""
    counts = None
    if call.key_counts is not None:
        counts = writer.op("Reshape", call.key_counts.name, writer.constants.integers([-1, 1, 1, 1]))
    keys_after = None if counts is None and _sees_all_after(call, new_key) else call.keys_after
    if counts is None and keys_after is None and call.keys_before is None:
        return None
    columns = _places(key, writer)
    conditions = []
    if keys_after is not None:
        last = _shifted(_query_places(call, query, counts, writer), keys_after, writer)
        conditions.append(writer.op("LessOrEqual", columns, last))
    if call.keys_before is not None:
        first = _shifted(_query_places(call, query, counts, writer), -call.keys_before, writer)
        conditions.append(writer.op("GreaterOrEqual", columns, first))
    if counts is not None and keys_after != 0:  # what is causal ends before the padding
        conditions.append(writer.op("Less", columns, counts))
    allowed = conditions[0]
    for condition in conditions[1:]:
        allowed = writer.op("And", allowed, condition)
    return allowed


def _sees_all_after(call: AttentionCall, new_key: Operand) -> bool:
    """Whether even the first query sees the last key: so in every step that decodes one token."""
    new = new_key.size(2)
    return call.keys_after is None or (isinstance(new, int) and new <= call.keys_after + 1)


def _query_places(call: AttentionCall, query: Operand, counts: str | None, writer: GraphWriter) -> str:
    """int64 `[batch or nothing, 1, queries, 1]`: place of each query among the keys."""
    rows = _places(query, writer)
    rows = writer.op("Unsqueeze", rows, writer.constants.integers([1]))
    if call.past_key is not None:
        return writer.op("Add", rows, writer.length(call.past_key.name, 2, call.past_key.size(2)))
    if counts is not None:
        return writer.op("Add", rows, writer.op("Sub", counts, writer.length(query.name, 2, query.size(2))))
    return rows


def _shifted(places: str, steps: int, writer: GraphWriter) -> str:
    return writer.op("Add", places, writer.constants.integers([steps])) if steps else places


def _places(operand: Operand, writer: GraphWriter) -> str:
    """int64 `[length]`: 0, 1, 2, … along axis 2."""
    size = operand.size(2)
    if isinstance(size, int):
        return writer.constants.integers(np.arange(size))
    end = writer.op("Squeeze", writer.length(operand.name, 2, size), writer.constants.integers([0]))
    return writer.op("Range", writer.constants.integers(0), end, writer.constants.integers(1))


def _never(call: AttentionCall, writer: GraphWriter) -> str:
    """What is added to the score of a masked position.

    The lowest number gives it a weight of 0, as infinity does, which OpenVINO multiplies by 0 in some of its fusions.
    """
    exposes_scores = call.scores_output and call.output_mode == MASKED_SCORES
    return writer.constants.number(-np.inf if exposes_scores else _LOWEST[call.element], call.element)
