"""Finds every `Attention` of a model, in subgraphs and functions too, and puts other operators in its place."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

import onnx
import onnx.inliner
from onnx import GraphProto, ModelProto, NodeProto, TypeProto

from xattn_export.decompose.arithmetic import write_attention
from xattn_export.decompose.call import read_call
from xattn_export.decompose.gelu import write_gelu
from xattn_export.decompose.lowering import default_opset, lower_opset
from xattn_export.graph.conformance import all_nodes, examine, subgraphs
from xattn_export.graph.editing import Constants, GraphWriter, Names, copy_fields, is_large
from xattn_runtime.bundle.standard_operators import STANDARD_DOMAIN
from xattn_runtime.errors import XattnError
from xattn_runtime.json_reader import one_line

__all__ = ["decompose_attention"]

_NEWEST_READ = 25
_FIRST_WITH_GELU = 20


def decompose_attention(model: ModelProto, *, opset: int | None = None, in_place: bool = False) -> ModelProto:
    """`model` with every standard `Attention`, of opset 23 and later, as operators that opset 18 already has.

    The whole operator is covered: 3D and 4D operands, grouped queries, past and present keys and values, causality,
    masks of any kind and rank, windows, softcap, softmax in another precision, padded caches, and each kind of score
    output. Tensors keep their names and types; functions that hold an `Attention` are dissolved into the graphs that
    call them. External weights stay external, and none is read.

    Args:
        model: any ONNX model, of any size; it is left as it is.
        opset: what the result is to import, 18 or later; by default what `model` imports. Operators that are too new
            for it and that the standard defines by older ones, such as `Gelu`, are replaced as well.
        in_place: change and return `model` itself, so that its weights are not in memory twice. What is refused is
            left as it is.

    Raises:
        XattnError: an `Attention` that breaks its specification or whose types cannot be inferred, or an operator that
            the opset asked for does not have in the same meaning.
    """
    result = _dissolve_callers(_without_weights(model))
    _Rewriter(result, with_gelu=opset is None or opset >= _FIRST_WITH_GELU).run()
    if opset is not None:
        result = lower_opset(result, opset)
    if "Attention" in examine(result).operators:
        raise XattnError("expected Attention in graphs and functions only, found it in the training information")
    if in_place:
        return _moved_into(model, result)
    weights = {tensor.name: tensor for tensor in model.graph.initializer if is_large(tensor)}
    for tensor in result.graph.initializer:
        if tensor.name in weights:
            tensor.CopyFrom(weights[tensor.name])
    return result


def _moved_into(model: ModelProto, result: ModelProto) -> ModelProto:
    """`model` with everything of `result` but the weights that it already has."""
    present = {tensor.name for tensor in model.graph.initializer}
    model.graph.initializer.extend(tensor for tensor in result.graph.initializer if tensor.name not in present)
    for target, source, excluded in ((model, result, "graph"), (model.graph, result.graph, "initializer")):
        for field, _ in target.ListFields():
            if field.name != excluded:
                target.ClearField(field.name)
        copy_fields(source, target, leave_out=(excluded,))
    return model


class _Rewriter:
    """Puts other nodes in the place of each `Attention` of a model, and of each `Gelu` where that has to go."""

    def __init__(self, model: ModelProto, with_gelu: bool) -> None:
        self._model = model
        self._with_gelu = with_gelu
        self._version = default_opset(model)
        self._names = Names(_names(model.graph))
        self._constants = Constants(names=self._names, stem="attention/constant")

    def run(self) -> None:
        """Rewrite the model in place."""
        nodes = list(all_nodes(self._model.graph.node))
        if any(_is_attention(node) for node in nodes):
            _require_known(self._version)
        if any(self._is_rewritten(node) for node in nodes):
            self._graph(self._model.graph, _inferred(self._model).graph, {})
            self._model.graph.initializer.extend(self._constants.protos())

    def _is_rewritten(self, node: NodeProto) -> bool:
        return _is_attention(node) or (not self._with_gelu and _is_standard(node, "Gelu"))

    def _graph(self, graph: GraphProto, inferred: GraphProto, outer: Mapping[str, TypeProto]) -> None:
        """`inferred` is the same graph with its types, `outer` the types around it."""
        types = {**outer, **_types(inferred)}
        writer = GraphWriter(self._constants, self._names, "attention")
        nodes: list[NodeProto] = []
        for node, known in zip(graph.node, inferred.node, strict=True):
            for inner, inner_known in zip(subgraphs(node), subgraphs(known), strict=True):
                self._graph(inner, inner_known, types)
            if not self._is_rewritten(node):
                nodes.append(node)
                continue
            writer.stem = node.name or node.output[0]
            if _is_attention(node):
                write_attention(read_call(node, types, self._version), writer)
            else:
                write_gelu(node, types, writer)
            nodes += writer.nodes
            writer.nodes.clear()
        rewritten = GraphProto(node=nodes)
        del graph.node[:]
        graph.node.extend(rewritten.node)


def _is_attention(node: NodeProto) -> bool:
    return _is_standard(node, "Attention")


def _is_standard(node: NodeProto, op_type: str) -> bool:
    return node.op_type == op_type and node.domain in ("", STANDARD_DOMAIN)


def _require_known(version: int) -> None:
    try:
        since = onnx.defs.get_schema("Attention", version).since_version
    except onnx.defs.SchemaError as error:
        raise XattnError(f"expected opset 23 or later in a model with Attention, found {version}") from error
    if since > _NEWEST_READ:
        raise XattnError(f"expected Attention of opset 23 to {_NEWEST_READ}, found that of {since}")


def _types(graph: GraphProto) -> dict[str, TypeProto]:
    types = {info.name: info.type for info in (*graph.value_info, *graph.input, *graph.output)}
    for tensor in graph.initializer:
        types[tensor.name] = onnx.helper.make_tensor_type_proto(tensor.data_type, list(tensor.dims))
    return types


def _inferred(model: ModelProto) -> ModelProto:
    try:
        return onnx.shape_inference.infer_shapes(model, data_prop=True)
    except onnx.shape_inference.InferenceError as error:
        raise XattnError(f"the types of the graph contradict each other: {one_line(error)[:500]}") from error


def _names(graph: GraphProto) -> set[str]:
    """Every name of a tensor or node in `graph` and its subgraphs."""
    names = {info.name for info in (*graph.input, *graph.output, *graph.value_info, *graph.initializer)}
    names |= {tensor.values.name for tensor in graph.sparse_initializer}
    for node in graph.node:
        names |= {node.name, *node.input, *node.output}
        for inner in subgraphs(node):
            names |= _names(inner)
    return names


def _without_weights(model: ModelProto) -> ModelProto:
    """A copy whose large weights have types but no content, so that it is small whatever the model weighs."""
    outline = ModelProto()
    copy_fields(model, outline, leave_out=("graph",))
    copy_fields(model.graph, outline.graph, leave_out=("initializer",))
    for tensor in model.graph.initializer:
        if is_large(tensor):
            outline.graph.initializer.add(name=tensor.name, data_type=tensor.data_type, dims=tensor.dims)
        else:
            outline.graph.initializer.append(tensor)
    return outline


def _dissolve_callers(model: ModelProto) -> ModelProto:
    """`model` with each function that holds an `Attention`, itself or through others, put where it is called.

    Within a function neither types nor the values of its parameters are known.
    """
    called = {(function.domain, function.name): set(_calls(function.node)) for function in model.functions}
    holders = {
        (function.domain, function.name)
        for function in model.functions
        if any(_is_attention(node) for node in all_nodes(function.node))
    }
    while callers := {name for name, calls in called.items() if calls & holders} - holders:
        holders |= callers
    if not holders:
        return model
    for nodes in (model.graph.node, *(function.node for function in model.functions)):
        _spell_out_defaults(nodes, model)
    try:
        dissolved = onnx.inliner.inline_selected_functions(model, sorted(holders))
    except RuntimeError as error:
        raise XattnError(f"functions with Attention cannot be dissolved: {one_line(error)[:500]}") from error
    functions = [function for function in dissolved.functions if (function.domain, function.name) not in holders]
    del dissolved.functions[:]
    dissolved.functions.extend(functions)
    return dissolved


def _calls(nodes: Iterable[NodeProto]) -> Iterator[tuple[str, str]]:
    return ((node.domain, node.op_type) for node in all_nodes(nodes))


def _spell_out_defaults(nodes: Iterable[NodeProto], model: ModelProto) -> None:
    """Give calls of functions the attributes that they leave to their defaults: onnx.inliner forgets these."""
    functions = {(function.domain, function.name): function for function in model.functions}
    for node in all_nodes(nodes):
        if function := functions.get((node.domain, node.op_type)):
            present_names = {attribute.name for attribute in node.attribute}
            node.attribute.extend(default for default in function.attribute_proto if default.name not in present_names)
