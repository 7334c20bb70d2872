"""The greedy decoding loop as a graph: a decoder becomes the body of the standard operator `Loop`.

One run generates all tokens of a batch, and the cache never leaves the engine. The body's weights are those of the
decoder: where they lie in a file beside it, both graphs name the same bytes.
https://onnx.ai/onnx/operators/onnx__Loop.html
"""

from __future__ import annotations

import numpy as np
from onnx import GraphProto, ModelProto, NodeProto, TensorProto, ValueInfoProto, helper, numpy_helper

from xattn_export.graph.conformance import all_nodes

__all__ = ["GENERATOR", "LOOPED", "generator_graph"]

GENERATOR = "generator"
"""The role of the graph that is made."""
LOOPED = "decoder"
"""The role of the graph that it is made of."""

_FLOAT, _INT64, _BOOL = TensorProto.FLOAT, TensorProto.INT64, TensorProto.BOOL
# Names inside the loop and outside of it must differ.
_STEP = "step."


def generator_graph(decoder: ModelProto, *, weights_outside: bool = False) -> ModelProto:
    """A graph that decodes greedily with `decoder`, a graph of that role.

    weights_outside: whether those weights that lie in a file belong to the graph around the loop rather than to the
    loop. ONNX Runtime keeps the file of those inside mapped into memory as long as the session lives, and is faster
    with few weights inside, with many outside (docs/performance.md).

    It takes what the decoder takes at the first step, and `max_new_tokens` int64 `[]`, `end_token_ids` int64 `[ends]`
    and `pad_token_id` int64 `[]`. It outputs `token_ids` int64 and `log_probs` float32, both `[batch, steps]`, end
    tokens included: `steps` is what the longest row took, and rows that ended before have `pad_token_id` and 0 from
    there on.
    """
    source = decoder.graph
    carried = [tensor.name for tensor in source.input if tensor.name == "input_ids" or tensor.name.startswith("past_")]
    body, weights = _body(source, carried, weights_outside=weights_outside)
    past = [name for name in carried if name != "input_ids"]
    last = [f"loop.last_{name}" for name in ("input_ids", "ended", *past)]
    nodes = [
        helper.make_node("Shape", ["input_ids"], ["loop.batch"], start=0, end=1),
        helper.make_node("ConstantOfShape", ["loop.batch"], ["loop.none_ended"], value=_constant([False])),
        helper.make_node("Constant", [], ["loop.goes"], value=numpy_helper.from_array(np.array(True))),
        helper.make_node(
            "Loop",
            ["max_new_tokens", "loop.goes", "input_ids", "loop.none_ended", *past],
            [*last, "loop.tokens", "loop.log_probs"],
            name="generate",
            body=body,
        ),
        helper.make_node("Transpose", ["loop.tokens"], ["token_ids"], perm=[1, 0]),
        helper.make_node("Transpose", ["loop.log_probs"], ["log_probs"], perm=[1, 0]),
    ]
    inputs = [
        *source.input,
        helper.make_tensor_value_info("max_new_tokens", _INT64, []),
        helper.make_tensor_value_info("end_token_ids", _INT64, ["ends"]),
        helper.make_tensor_value_info("pad_token_id", _INT64, []),
    ]
    outputs = [
        helper.make_tensor_value_info("token_ids", _INT64, ["batch", "steps"]),
        helper.make_tensor_value_info("log_probs", _FLOAT, ["batch", "steps"]),
    ]
    graph = helper.make_graph(nodes, GENERATOR, inputs, outputs, weights)
    return helper.make_model(
        graph,
        ir_version=decoder.ir_version,
        opset_imports=decoder.opset_import,
        producer_name=decoder.producer_name,
        producer_version=decoder.producer_version,
    )


def _body(source: GraphProto, carried: list[str], *, weights_outside: bool) -> tuple[GraphProto, list[TensorProto]]:
    """One step: the decoder, and what becomes of its choice in rows that have ended; and the weights left outside.

    The step number and the condition go in, then `carried`; the condition, `carried` of the next step, the token and
    its log-probability come out.
    """
    nodes = [NodeProto.FromString(node.SerializeToString()) for node in source.node]
    weights = [TensorProto.FromString(tensor.SerializeToString()) for tensor in source.initializer]
    _rename(nodes, weights, carried)
    nodes += [
        helper.make_node("Where", ["loop.ended", "pad_token_id", f"{_STEP}next_token"], ["loop.token"]),
        helper.make_node("Where", ["loop.ended", "loop.zero", f"{_STEP}next_log_prob"], ["loop.log_prob"]),
        helper.make_node("Unsqueeze", ["loop.token", "loop.axis"], ["loop.next_ids"]),
        helper.make_node("Equal", ["loop.next_ids", "end_token_ids"], ["loop.matches"]),
        *_reduced("ReduceMax", "loop.matches", "loop.ends", "loop.axis"),
        helper.make_node("Or", ["loop.ended", "loop.ends"], ["loop.ended_now"]),
        *_reduced("ReduceMin", "loop.ended_now", "loop.all_ended"),
        helper.make_node("Not", ["loop.all_ended"], ["loop.goes_on"]),
    ]
    types = {tensor.name: tensor for tensor in (*source.input, *source.output)}
    past = [name for name in carried if name != "input_ids"]
    present = [name.replace("past_", "present_", 1) for name in past]
    inputs = [
        helper.make_tensor_value_info("loop.number", _INT64, []),
        helper.make_tensor_value_info("loop.went_on", _BOOL, []),
        _any_length(types["input_ids"]),
        helper.make_tensor_value_info("loop.ended", _BOOL, [None]),
        *(_any_length(types[name]) for name in past),
    ]
    outputs = [
        helper.make_tensor_value_info("loop.goes_on", _BOOL, []),
        helper.make_tensor_value_info("loop.next_ids", _INT64, [None, 1]),
        helper.make_tensor_value_info("loop.ended_now", _BOOL, [None]),
        *(_any_length(types[name]) for name in present),
        helper.make_tensor_value_info("loop.token", _INT64, [None]),
        helper.make_tensor_value_info("loop.log_prob", _FLOAT, [None]),
    ]
    constants = [_constant([1], "loop.axis"), numpy_helper.from_array(np.zeros((), np.float32), "loop.zero")]
    outside = _movable(nodes, weights) if weights_outside else set()
    inside = [tensor for tensor in weights if tensor.name not in outside]
    body = helper.make_graph(nodes, "step", inputs, outputs, [*inside, *constants])
    return body, [tensor for tensor in weights if tensor.name in outside]


def _movable(nodes: list[NodeProto], weights: list[TensorProto]) -> set[str]:
    """Weights in files, but for what `DequantizeLinear` reads: ONNX Runtime fuses that only within one graph."""
    fused = {name for node in all_nodes(nodes) if node.op_type == "DequantizeLinear" for name in node.input}
    return {tensor.name for tensor in weights if tensor.data_location == TensorProto.EXTERNAL} - fused


def _rename(nodes: list[NodeProto], weights: list[TensorProto], carried: list[str]) -> None:
    """Prefix what the decoder computes, its weights, and those of its inputs that change from step to step."""
    inner = {*carried, *(tensor.name for tensor in weights), *(name for node in nodes for name in node.output if name)}
    for tensor in weights:
        tensor.name = f"{_STEP}{tensor.name}"
    for node in all_nodes(nodes):
        for names in (node.input, node.output):
            names[:] = [f"{_STEP}{name}" if name in inner else name for name in names]


def _reduced(operator: str, value: str, output: str, *axes: str) -> list[NodeProto]:
    """`ReduceMax` (any) or `ReduceMin` (all) of booleans, which before opset 20 reduce no booleans."""
    return [
        helper.make_node("Cast", [value], [f"{value}_number"], to=_FLOAT),
        helper.make_node(operator, [f"{value}_number", *axes], [f"{output}_number"], keepdims=0),
        helper.make_node("Cast", [f"{output}_number"], [output], to=_BOOL),
    ]


def _any_length(tensor: ValueInfoProto) -> ValueInfoProto:
    """`tensor` inside the loop, where the axes that change from step to step have no name."""
    axes = [axis.dim_value or None for axis in tensor.type.tensor_type.shape.dim]
    return helper.make_tensor_value_info(f"{_STEP}{tensor.name}", tensor.type.tensor_type.elem_type, axes)


def _constant(values: list[int] | list[bool], name: str = "value") -> TensorProto:
    return numpy_helper.from_array(np.array(values), name)
