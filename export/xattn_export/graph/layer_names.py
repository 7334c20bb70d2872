"""Names of nodes that say which layer of the model they belong to: a profile or a viewer is read like the model."""

from __future__ import annotations

import ast
from collections import Counter

from onnx import ModelProto, NodeProto

__all__ = ["name_by_layer"]

_SCOPES = "pkg.torch.onnx.name_scopes"


def name_by_layer(model: ModelProto) -> None:
    """Name every node of `model`, in place, `layers.0.attention.query/MatMul`: the module's path, and the operator.

    The paths are what torch's exporter notes of each node. Further nodes of a module with the same operator end with
    `.2`, `.3` …; what belongs to no module has the operator's name alone. The output of a node is named after it, with
    `:0`, since engines name what they fuse after either.
    """
    graph = model.graph
    graph_values = {value.name for value in (*graph.input, *graph.output)}
    inner = any(attribute.HasField("g") for node in graph.node for attribute in node.attribute)
    counts: Counter[str] = Counter()
    renamed: dict[str, str] = {}
    for node in graph.node:
        path = _module_path(node)
        name = f"{path}/{node.op_type}" if path else node.op_type
        counts[name] += 1
        node.name = name if counts[name] == 1 else f"{name}.{counts[name]}"
        outputs = [] if inner else [output for output in node.output if output and output not in graph_values]
        for number, output in enumerate(outputs):
            renamed[output] = f"{node.name}:{number}"
    for node in graph.node:
        node.input[:] = [renamed.get(name, name) for name in node.input]
        node.output[:] = [renamed.get(name, name) for name in node.output]


def _module_path(node: NodeProto) -> str:
    """The innermost module's, `""` where there is none. The last scope is the operation's own."""
    noted = next((entry.value for entry in node.metadata_props if entry.key == _SCOPES), "[]")
    try:
        scopes = ast.literal_eval(noted)
    except (SyntaxError, ValueError):
        return ""
    inside = scopes[1:-1] if isinstance(scopes, list) else []
    return str(inside[-1]) if inside else ""
