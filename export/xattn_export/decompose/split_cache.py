"""A decoder whose cache is in two parts: one that is as it is for many steps, and a short one that grows with each.

An `Attention` that takes a cache and gives a longer one copies all of it at every step. Here the tokens read long ago
are `frozen`, which no step copies; only the `past` since then, a few tokens, is written anew with what is new. Scores
of both parts stand beside each other before one softmax, so that the result is the same. Keys are kept transposed,
`[batch, kv_heads, head_width, tokens]`, as the product with one query reads them: line by line, without packing.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import onnx
from onnx import ModelProto, NodeProto, TensorProto, TypeProto, ValueInfoProto, helper

from xattn_export.decompose.call import AttentionCall, Operand, read_call
from xattn_export.decompose.lowering import default_opset
from xattn_export.graph.editing import (
    Constants,
    GraphParts,
    GraphWriter,
    Names,
    attributes,
    graph_parts,
)
from xattn_runtime.bundle.contract import frozen_names, layers_of, past_names, present_names
from xattn_runtime.errors import XattnError

__all__ = ["split_cache"]

# Axes of tokens in what a cache holds: keys are transposed.
_KEY_AXIS, _VALUE_AXIS = 3, 2
_LOWEST = float(np.finfo(np.float32).min)


def split_cache(decoder: ModelProto) -> ModelProto:
    """`decoder`, a graph of that role whose every layer's cache goes through an `Attention`, with a cache in two parts.

    Inputs: `past_key_N` and `past_value_N` as before, but with keys transposed; and `frozen_key_N` and
    `frozen_value_N`, of one row for all rows of the batch or of a row for each. Outputs: `present_key_N` and
    `present_value_N`, which hold the past and the new tokens. Weights are neither copied nor read.

    Raises:
        XattnError: the cache goes another way.
    """
    parts = graph_parts(decoder)
    layers = layers_of("past", [tensor.name for tensor in parts.inputs])
    rewriter = _CacheSplitter(parts, layers, default_opset(decoder))
    for node in parts.nodes:
        rewriter.add(node)
    return rewriter.finished()


@dataclass(frozen=True)
class _Sizes:
    """int64 `[1]` each, of all layers alike: tokens that are frozen, of the past, and new."""

    frozen: str
    past: str
    new: str


class _CacheSplitter:
    def __init__(self, parts: GraphParts, layers: int, opset: int) -> None:
        self._parts, self._opset = parts, opset
        self._types = _types(parts)
        self._layer_of = {name: place // 2 for place, name in enumerate(past_names(layers))}
        self._frozen = dict(zip(past_names(layers), frozen_names(layers), strict=True))
        self._present = present_names(layers)
        names = Names({*parts.tensors, *self._frozen.values(), *(name for node in parts.nodes for name in node.output)})
        self._writer = GraphWriter(Constants(parts.tensors, parts.files, names=names, stem="cache"), names, "cache")
        self._sizes: _Sizes | None = None
        self._split = 0

    def add(self, node: NodeProto) -> None:
        """`node`, or what takes its place."""
        read = [name for name in node.input if name in self._frozen]
        if not read:
            self._writer.keep(node)
        elif node.op_type == "Attention" and len(read) == 2:
            self._writer.stem = node.name or node.output[0]
            self._attend(read_call(node, self._types, self._opset))
            self._split += 1
        elif node.op_type == "Shape":
            self._measure(node, read[0])
        else:
            raise XattnError(f"{node.op_type} {node.name}: expected only Attention to read {read[0]}; its cache stays")

    def finished(self) -> ModelProto:
        """The model with its inputs and outputs."""
        if 2 * self._split != len(self._frozen):
            raise XattnError(f"expected an Attention for each of {len(self._frozen) // 2} layers, found {self._split}")
        frame = ModelProto()
        frame.CopyFrom(self._parts.frame)
        added = [_frozen_input(value, self._frozen[value.name]) for value in frame.graph.input if self._is_past(value)]
        for value in (*frame.graph.input, *frame.graph.output):
            if value.name in self._present or self._is_past(value):
                _turn_keys(value)
        inputs = [*frame.graph.input]
        first = next(place for place, value in enumerate(inputs) if self._is_past(value))
        inputs[first:first] = added
        del frame.graph.input[:]
        frame.graph.input.extend(inputs)
        del frame.graph.value_info[:]
        return self._parts.rewritten(self._writer, frame).model(weights_inside=False)

    def _is_past(self, value: ValueInfoProto) -> bool:
        return value.name in self._frozen

    def _measure(self, node: NodeProto, past: str) -> None:
        """A size of the cache: of its tokens, those of both parts."""
        options = attributes(node)
        start, end = options.get("start", 0), options.get("end")
        if (start, end) == (0, 1):
            self._writer.keep(node)
            return
        if (start, end) != (2, 3):
            raise XattnError(f"Shape {node.name}: expected one axis of {past}, found {start} to {end}; its cache stays")
        self._writer.stem = node.name or node.output[0]
        frozen, before = (self._writer.op("Shape", name, start=3, end=4) for name in self._first_keys())
        self._writer.publish(self._writer.op("Add", frozen, before), node.output[0])

    def _first_keys(self) -> tuple[str, str]:
        first = next(iter(self._frozen))
        return self._frozen[first], first

    def _known_sizes(self, call: AttentionCall) -> _Sizes:
        if self._sizes is None:
            frozen, past = (self._writer.op("Shape", name, start=3, end=4) for name in self._first_keys())
            axis = 1 if call.packed else 2
            self._sizes = _Sizes(frozen, past, self._writer.op("Shape", call.query.name, start=axis, end=axis + 1))
        return self._sizes

    def _attend(self, call: AttentionCall) -> None:
        writer, past_key, past_value = self._writer, call.past_key, call.past_value
        assert past_key is not None and past_value is not None
        layer = self._layer_of[past_key.name]
        if self._layer_of[past_value.name] != layer or call.scores_output or call.keys_before is not None:
            raise XattnError(f"Attention {call.name}: expected no scores and no window, found one; its cache stays")
        sizes = self._known_sizes(call)
        heads, width = _whole_axes(call, past_value)
        groups = _query_heads(call) // heads
        query = self._scaled(self._grouped(call, heads, groups), call, width)
        key, value = (self._longer(call, operand, heads) for operand in (past_key, past_value))
        frozen = [self._beside_groups(self._frozen[past.name], groups) for past in (past_key, past_value)]
        recent = [self._beside_groups(name, groups) for name in (key, value)]
        scores = [writer.op("MatMul", query, keys) for keys in (frozen[0], recent[0])]
        weights = self._weights(call, writer.op("Concat", *scores, axis=-1), sizes, groups)
        recent_length = writer.op("Add", sizes.past, sizes.new)
        lengths = writer.op("Concat", sizes.frozen, recent_length, axis=0)
        shares = self._divided(weights, lengths)
        sums = [
            writer.op("MatMul", share, values) for share, values in zip(shares, (frozen[1], recent[1]), strict=True)
        ]
        self._writer.publish(self._as_output(call, writer.op("Add", *sums), heads, groups), call.output)

    def _grouped(self, call: AttentionCall, heads: int, groups: int) -> str:
        """The query, `[batch, kv_heads, groups, length, width]`, or without groups where each key has one query."""
        writer, name = self._writer, call.query.name
        inner = (heads, groups) if groups > 1 else (heads,)
        if call.packed:
            split = writer.op("Reshape", name, writer.constants.integers([0, 0, *inner, -1]))
            return writer.op("Transpose", split, perm=(0, 2, 3, 1, 4) if groups > 1 else (0, 2, 1, 3))
        if groups == 1:
            return name
        length = writer.op("Shape", name, start=2)
        shape = writer.op("Concat", writer.constants.integers([0, *inner]), length, axis=0)
        return writer.op("Reshape", name, shape)

    def _scaled(self, query: str, call: AttentionCall, width: int) -> str:
        scale = width**-0.5 if call.scale is None else call.scale
        if scale == 1.0:
            return query
        return self._writer.op("Mul", query, self._writer.constants.number(scale, call.element))

    def _longer(self, call: AttentionCall, past: Operand, heads: int) -> str:
        """The past with the new keys, transposed, or values, as the output of the graph that it is."""
        writer, is_key = self._writer, past is call.past_key
        new = (call.key if is_key else call.value).name
        if call.packed:
            new = writer.op("Reshape", new, writer.constants.integers([0, 0, heads, -1]))
            new = writer.op("Transpose", new, perm=(0, 2, 3, 1) if is_key else (0, 2, 1, 3))
        elif is_key:
            new = writer.op("Transpose", new, perm=(0, 1, 3, 2))
        longer = writer.op("Concat", past.name, new, axis=_KEY_AXIS if is_key else _VALUE_AXIS)
        present = call.present_key if is_key else call.present_value
        if present.name not in self._present:
            raise XattnError(f"Attention {call.name}: expected its cache among the outputs, found none; it stays")
        return writer.publish(longer, present.name)

    def _beside_groups(self, name: str, groups: int) -> str:
        """Keys or values with an axis for the groups of queries, so that they meet each query by itself."""
        return self._writer.op("Unsqueeze", name, self._writer.constants.integers([2])) if groups > 1 else name

    def _weights(self, call: AttentionCall, scores: str, sizes: _Sizes, groups: int) -> str:
        writer = self._writer
        if call.softcap:
            cap = writer.constants.number(call.softcap, call.element)
            scores = writer.op("Mul", writer.op("Tanh", writer.op("Div", scores, cap)), cap)
        if call.mask is not None:
            scores = writer.op("Add", scores, self._mask(call, call.mask, groups))
        if call.keys_after == 0:
            scores = writer.op("Add", scores, self._causal(call, sizes))
        return writer.op("Softmax", scores, axis=-1)

    def _mask(self, call: AttentionCall, mask: Operand, groups: int) -> str:
        """What is added for the mask, with the axes of the scores."""
        writer, name, rank = self._writer, mask.name, None if mask.shape is None else len(mask.shape)
        if mask.element == TensorProto.BOOL:
            nothing, never = (writer.constants.number(value, call.element) for value in (0.0, _LOWEST))
            name = writer.op("Where", name, nothing, never)
        if rank == 2 or groups == 1:
            return name
        if rank == 4 and mask.size(1) == 1:
            return self._beside_groups(name, groups)
        raise XattnError(f"Attention {call.name}: expected a mask that all heads share, found another; its cache stays")

    def _causal(self, call: AttentionCall, sizes: _Sizes) -> str:
        """`[length, frozen + past + length]`: 0 for what a new token may see, else the lowest number."""
        writer = self._writer
        before = writer.op("Add", sizes.frozen, sizes.past)
        total = writer.op("Add", before, sizes.new)
        zero, one = (writer.constants.integers(number) for number in (0, 1))
        columns, rows = (writer.op("Range", zero, writer.op("Squeeze", size), one) for size in (total, sizes.new))
        places = writer.op("Unsqueeze", writer.op("Add", rows, before), writer.constants.integers([1]))
        allowed = writer.op("LessOrEqual", columns, places)
        nothing, never = (writer.constants.number(value, call.element) for value in (0.0, _LOWEST))
        return writer.op("Where", allowed, nothing, never)

    def _divided(self, weights: str, lengths: str) -> tuple[str, str]:
        """The weights of the frozen part and of the rest."""
        names = (f"{weights}/frozen", f"{weights}/recent")
        self._writer.keep(helper.make_node("Split", [weights, lengths], names, f"{weights}/Split", axis=-1))
        return names

    def _as_output(self, call: AttentionCall, sums: str, heads: int, groups: int) -> str:
        writer, constants = self._writer, self._writer.constants
        if not call.packed:
            if groups == 1:
                return sums
            shape = writer.op(
                "Concat", constants.integers([0, heads * groups]), writer.op("Shape", sums, start=3), axis=0
            )
            return writer.op("Reshape", sums, shape)
        turned = writer.op("Transpose", sums, perm=(0, 3, 1, 2, 4) if groups > 1 else (0, 2, 1, 3))
        return writer.op("Reshape", turned, constants.integers([0, 0, -1]))


def _types(parts: GraphParts) -> Mapping[str, TypeProto]:
    graph = onnx.shape_inference.infer_shapes(parts.outline()).graph
    return {value.name: value.type for value in (*graph.value_info, *graph.input, *graph.output)}


def _whole_axes(call: AttentionCall, past_value: Operand) -> tuple[int, int]:
    """Heads of the keys and width of a head."""
    heads, width = past_value.size(1), past_value.size(3)
    if not isinstance(heads, int) or not isinstance(width, int):
        raise XattnError(f"Attention {call.name}: expected a cache of static heads and width; it stays")
    return heads, width


def _query_heads(call: AttentionCall) -> int:
    heads = call.query_heads if call.packed else call.query.size(1)
    if not isinstance(heads, int):
        raise XattnError(f"Attention {call.name}: expected a static number of query heads; its cache stays")
    return heads


def _frozen_input(past: ValueInfoProto, name: str) -> ValueInfoProto:
    """That of the frozen part beside an input of the past, which is as it was before keys were transposed."""
    _, heads, _, width = past.type.tensor_type.shape.dim
    axes = ["rows", heads.dim_value, "frozen", width.dim_value]
    value = helper.make_tensor_value_info(name, past.type.tensor_type.elem_type, axes)
    _turn_keys(value)
    return value


def _turn_keys(value: ValueInfoProto) -> None:
    """Swap the last two axes of a key."""
    if "_key_" in value.name:
        shape = value.type.tensor_type.shape
        batch, heads, tokens, width = (type(axis).FromString(axis.SerializeToString()) for axis in shape.dim)
        del shape.dim[:]
        shape.dim.extend([batch, heads, width, tokens])
