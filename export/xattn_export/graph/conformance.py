"""Proves that a graph is standard ONNX and valid, and walks over its nodes and constants.

Which operators are standard is in `xattn_runtime/bundle/standard_operators.py`. It knows ONNX, and nothing of torch or
ONNX Runtime.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path

import onnx
from onnx import AttributeProto, GraphProto, ModelProto, NodeProto, TensorProto

from xattn_runtime.bundle.graph_facts import GraphFacts, facts_of
from xattn_runtime.bundle.onnx_header import GraphBody, ModelHeader, NodeHeader, WeightHeader
from xattn_runtime.bundle.standard_operators import STANDARD_DOMAIN
from xattn_runtime.errors import XattnError
from xattn_runtime.json_reader import one_line

__all__ = [
    "FLOATING",
    "all_initializers",
    "all_nodes",
    "drop_unused_imports",
    "examine",
    "header_of",
    "require_standard",
    "require_valid",
    "subgraphs",
]

FLOATING = (TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.BFLOAT16, TensorProto.DOUBLE)
"""Element types of floating-point numbers."""


def examine(model: ModelProto) -> GraphFacts:
    """The facts of `model`; never raises for what is not standard."""
    return facts_of(header_of(model))


def header_of(model: ModelProto) -> ModelHeader:
    """What `read_header` would return for the file of `model`."""
    imports = _imports(model.opset_import)
    bodies = [_body("the graph", imports, model.graph)]
    for function in model.functions:
        name = f"the function {function.domain or STANDARD_DOMAIN}::{function.name}"
        bodies.append(GraphBody(name, _imports(function.opset_import), _nodes(function.node)))
    for training in model.training_info:
        bodies.append(_body("the initialization", imports, training.initialization))
        bodies.append(_body("the algorithm", imports, training.algorithm))
    return ModelHeader(model.ir_version, imports, tuple(bodies))


def require_standard(model: ModelProto, role: str) -> GraphFacts:
    """The facts of a standard graph.

    Raises:
        XattnError: an operator, function or import outside `ai.onnx`; names role and operator.
    """
    facts = examine(model)
    if facts.offences:
        raise XattnError(
            f"{role}: expected operators of {STANDARD_DOMAIN} only, found that "
            f"{'; '.join(facts.offences[:3])}{' …' if len(facts.offences) > 3 else ''}"
        )
    return facts


def require_valid(model: ModelProto, role: str, folder: Path | None = None) -> None:
    """Have ONNX check the graph, types and shapes included; `folder` holds the weights that lie outside of it.

    Raises:
        XattnError: it is not valid; names the role.
    """
    try:
        if folder is None:
            onnx.checker.check_model(model, full_check=True)
            return
        # Weights beside a graph are looked for beside its file.
        with tempfile.NamedTemporaryFile(dir=folder, suffix=".onnx") as file:
            file.write(model.SerializeToString())
            file.flush()
            onnx.checker.check_model(file.name, full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise XattnError(f"{role}: the exported graph is not valid ONNX: {one_line(error)[:500]}") from error


def all_nodes(nodes: Iterable[NodeProto]) -> Iterator[NodeProto]:
    """`nodes` and those of their subgraphs, at any depth."""
    for node in nodes:
        yield node
        for graph in subgraphs(node):
            yield from all_nodes(graph.node)


def all_initializers(graph: GraphProto) -> Iterator[TensorProto]:
    """The constants of `graph` and of its subgraphs, at any depth."""
    yield from graph.initializer
    for node in graph.node:
        for subgraph in subgraphs(node):
            yield from all_initializers(subgraph)


def drop_unused_imports(model: ModelProto) -> None:
    """Take the domains that no node and no function is of off the imports of `model`, in place."""
    used = {node.domain for node in all_nodes(model.graph.node)} | {function.domain for function in model.functions}
    imports = [entry for entry in model.opset_import if entry.domain in ("", STANDARD_DOMAIN) or entry.domain in used]
    del model.opset_import[:]
    model.opset_import.extend(imports)


def subgraphs(node: NodeProto) -> Iterator[GraphProto]:
    """The graphs among the attributes of `node`."""
    for attribute in node.attribute:
        if attribute.type == AttributeProto.GRAPH:
            yield attribute.g
        elif attribute.type == AttributeProto.GRAPHS:
            yield from attribute.graphs


def _body(name: str, imports: tuple[tuple[str, int], ...], graph: GraphProto) -> GraphBody:
    return GraphBody(name, imports, _nodes(graph.node), tuple(map(_weight, all_initializers(graph))))


def _nodes(nodes: Iterable[NodeProto]) -> tuple[NodeHeader, ...]:
    return tuple(NodeHeader(node.op_type, node.domain) for node in all_nodes(nodes))


def _weight(tensor: TensorProto) -> WeightHeader:
    location = None
    if tensor.data_location == TensorProto.EXTERNAL:
        location = next((entry.value for entry in tensor.external_data if entry.key == "location"), None)
    return WeightHeader(tensor.data_type, tuple(tensor.dims), location)


def _imports(opsets: Iterable[onnx.OperatorSetIdProto]) -> tuple[tuple[str, int], ...]:
    return tuple((entry.domain, entry.version) for entry in opsets)
