"""Proves that a graph is standard ONNX: every operator of every graph, subgraph and function is one of `ai.onnx`.

It knows ONNX and nothing of bundles, torch or ONNX Runtime. A name in the domain `ai.onnx` is not enough: the operator
must exist in the opset that the graph imports, and must not be deprecated there.
"""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx
from onnx import AttributeProto, FunctionProto, GraphProto, ModelProto, NodeProto, TensorProto

from xattn_runtime.errors import XattnError
from xattn_runtime.json_reader import one_line

__all__ = [
    "FLOATING",
    "STANDARD_DOMAIN",
    "GraphFacts",
    "all_initializers",
    "all_nodes",
    "drop_unused_imports",
    "examine",
    "require_standard",
    "require_valid",
    "subgraphs",
]

STANDARD_DOMAIN = "ai.onnx"
FLOATING = (TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.BFLOAT16, TensorProto.DOUBLE)
"""Element types of floating-point numbers."""

_INT8_OPERATORS = frozenset({"MatMulInteger", "ConvInteger", "DequantizeLinear", "QLinearMatMul", "QLinearConv"})
_FLOATS: Mapping[int, str] = {TensorProto.FLOAT: "fp32", TensorProto.FLOAT16: "fp16", TensorProto.BFLOAT16: "bf16"}
_BYTES = (TensorProto.INT8, TensorProto.UINT8)
_HALF_BYTES = (TensorProto.INT4, TensorProto.UINT4)


@dataclass(frozen=True)
class GraphFacts:
    """What a graph is made of.

    opset: of `ai.onnx`, or None where the graph does not import it.
    domains: that are imported or used, `ai.onnx` for the default one.
    operators: name → count, over all graphs and functions; other domains' names are `domain::name`.
    offences: why it is not standard, empty where it is.
    precision: `int4` where weights are of 4 bits, `int8` where weights or products are of 8 bits, else that of most
        weights.
    """

    opset: int | None
    domains: tuple[str, ...]
    operators: Mapping[str, int]
    offences: tuple[str, ...]
    precision: str

    @property
    def standard(self) -> bool:
        """Whether every operator is a standard one."""
        return not self.offences

    def to_dict(self) -> dict[str, Any]:
        """As JSON values."""
        return {
            "opset": self.opset,
            "domains": list(self.domains),
            "operators": dict(self.operators),
            "precision": self.precision,
        }


def examine(model: ModelProto) -> GraphFacts:
    """The facts of `model`; never raises for what is not standard."""
    imports = _imports(model.opset_import)
    operators: Counter[str] = Counter()
    domains = set(imports)
    offences = [f"imports the domain {domain}" for domain in imports if domain != STANDARD_DOMAIN]
    if STANDARD_DOMAIN not in imports:
        offences.append(f"does not import {STANDARD_DOMAIN}")
    for where, nodes, scope in _scopes(model):
        if foreign := [domain for domain in scope if domain != STANDARD_DOMAIN]:
            offences += [f"{where} imports the domain {domain}" for domain in foreign]
            domains.update(foreign)
        for node in nodes:
            domain = node.domain or STANDARD_DOMAIN
            name = node.op_type if domain == STANDARD_DOMAIN else f"{domain}::{node.op_type}"
            operators[name] += 1
            domains.add(domain)
            if reason := _offence(domain, node.op_type, scope.get(STANDARD_DOMAIN)):
                offences.append(f"{where} holds {name}, {reason}")
    return GraphFacts(
        opset=imports.get(STANDARD_DOMAIN),
        domains=tuple(sorted(domains)),
        operators=dict(sorted(operators.items())),
        offences=tuple(dict.fromkeys(offences)),
        precision=_precision(model, operators),
    )


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
    kept = [entry for entry in model.opset_import if entry.domain in ("", STANDARD_DOMAIN) or entry.domain in used]
    del model.opset_import[:]
    model.opset_import.extend(kept)


def subgraphs(node: NodeProto) -> Iterator[GraphProto]:
    """The graphs among the attributes of `node`."""
    for attribute in node.attribute:
        if attribute.type == AttributeProto.GRAPH:
            yield attribute.g
        elif attribute.type == AttributeProto.GRAPHS:
            yield from attribute.graphs


def _scopes(model: ModelProto) -> Iterator[tuple[str, Iterator[NodeProto], dict[str, int]]]:
    """Every body of nodes, with its name and the opsets it imports."""
    imports = _imports(model.opset_import)
    yield "the graph", all_nodes(model.graph.node), imports
    for function in model.functions:
        yield f"the function {_function_name(function)}", all_nodes(function.node), _imports(function.opset_import)
    for training in model.training_info:
        yield "the initialization", all_nodes(training.initialization.node), imports
        yield "the algorithm", all_nodes(training.algorithm.node), imports


def _function_name(function: FunctionProto) -> str:
    return f"{function.domain or STANDARD_DOMAIN}::{function.name}"


def _imports(opsets: Iterable[onnx.OperatorSetIdProto]) -> dict[str, int]:
    return {entry.domain or STANDARD_DOMAIN: entry.version for entry in opsets}


def _offence(domain: str, op_type: str, opset: int | None) -> str | None:
    """Why an operator is not standard, or None where it is."""
    if domain != STANDARD_DOMAIN:
        return f"which is not of {STANDARD_DOMAIN}"
    if opset is None:
        return f"and does not import {STANDARD_DOMAIN}"
    try:
        schema = onnx.defs.get_schema(op_type, opset)
    except onnx.defs.SchemaError:
        return f"which opset {opset} does not have"
    return f"which opset {opset} deprecates" if schema.deprecated else None


def _precision(model: ModelProto, operators: Mapping[str, int]) -> str:
    weights = list(all_initializers(model.graph))
    if any(tensor.data_type in _HALF_BYTES for tensor in weights):
        return "int4"
    has_bytes = any(tensor.data_type in _BYTES and len(tensor.dims) > 1 for tensor in weights)
    if has_bytes or not _INT8_OPERATORS.isdisjoint(operators):
        return "int8"
    elements: Counter[str] = Counter()
    for tensor in weights:
        if tensor.data_type in _FLOATS:
            count = 1
            for dimension in tensor.dims:
                count *= dimension
            elements[_FLOATS[tensor.data_type]] += count
    return elements.most_common(1)[0][0] if elements else "fp32"
