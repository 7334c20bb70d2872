"""Brings products with a constant into the one form that quantization handles: `MatMul` whose second input is constant.

A fully connected layer may have been exported as `Gemm`, or with a `Transpose` of its weights (a head that shares the
embedding's table). What is computed stays the same, and no weight is copied.
"""

from __future__ import annotations

from onnx import NodeProto

from xattn_export.graph.editing import Constants, GraphParts, GraphWriter, attributes, with_inputs

__all__ = ["prepare_products"]


def prepare_products(graph: GraphParts) -> GraphParts:
    """`graph` with `MatMul` and `Add` for each `Gemm` with constant weights, and transposed constants folded."""
    writer = GraphWriter(graph.constants())
    for node in _without_transposes(graph, writer.constants):
        if node.op_type == "Gemm" and _is_linear(node, writer.constants):
            _write_product(node, writer)
        else:
            writer.keep(node)
    return graph.rewritten(writer)


def _without_transposes(graph: GraphParts, constants: Constants) -> list[NodeProto]:
    """The nodes without those that transpose a constant, which is among `constants` transposed."""
    outputs = {output.name for output in graph.outputs}
    nodes: list[NodeProto] = []
    renamed: dict[str, str] = {}
    for node in graph.nodes:
        if node.op_type == "Transpose" and constants.is_float(node.input[0], 2) and node.output[0] not in outputs:
            is_transposed = attributes(node).get("perm") != [0, 1]
            name = f"{node.input[0]}_transposed"
            renamed[node.output[0]] = constants.alias(name, node.input[0], transposed=is_transposed)
        else:
            nodes.append(node)
    return [
        with_inputs(node, (renamed.get(name, name) for name in node.input))
        if any(name in renamed for name in node.input)
        else node
        for node in nodes
    ]


def _is_linear(node: NodeProto, constants: Constants) -> bool:
    """Whether a `Gemm` is a fully connected layer."""
    options = {"alpha": 1.0, "beta": 1.0, "transA": 0} | attributes(node)
    return constants.is_float(node.input[1], 2) and (options["alpha"], options["beta"], options["transA"]) == (1, 1, 0)


def _write_product(node: NodeProto, writer: GraphWriter) -> None:
    weights, output = node.input[1], node.output[0]
    if attributes(node).get("transB"):
        weights = writer.constants.alias(f"{weights}_transposed", weights, transposed=True)
    if len(node.input) < 3:
        writer.node("MatMul", [node.input[0], weights], output, node.name)
        return
    product = writer.node("MatMul", [node.input[0], weights], f"{output}_product", node.name)
    writer.node("Add", [product, node.input[2]], output, f"{node.name}_bias")
