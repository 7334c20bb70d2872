"""The role `attention`: a graph of the bundle with its attention weights as outputs, for heat maps of an image.

Derived from the graph in which text attends to the image: the decoder, the classifier, or the text encoder. The one
that is made shares its weights where they lie in a file, and is a graph of its own, so that none of the others gets
slower. https://onnx.ai/onnx/operators/onnx__Attention.html (`qk_matmul_output_mode` 3 is after the softmax)
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import replace
from pathlib import PurePosixPath

from onnx import ModelProto, NodeProto, TensorProto, helper

from xattn_export.bundle.graph_files import write_graph
from xattn_export.bundle.writer import StagedBundle
from xattn_export.graph.conformance import all_nodes, require_standard, require_valid
from xattn_export.graph.editing import GraphParts, GraphWriter, graph_parts, with_inputs
from xattn_export.graph.reading import read_graph
from xattn_runtime.bundle.graph_facts import GraphFacts
from xattn_runtime.bundle.manifest import ATTENTION_ROLE, Graph, Manifest
from xattn_runtime.errors import UserError

__all__ = ["attention_graph", "write_attention"]

# The graph in which text attends to the image, and the series of keys and values that it attends to.
_ATTENDING = (("text_encoder", "image"), ("decoder", "cross"), ("classifier", "cross"))
_AFTER_SOFTMAX = 3
_PRODUCTS = ("MatMul", "MatMulInteger")
_MOST_BETWEEN = 8


def write_attention(staged: StagedBundle, manifest: Manifest) -> tuple[Manifest, GraphFacts, int]:
    """Write the role; the manifest with it, the facts of the graph, and its size in bytes.

    Raises UserError where no text attends to the image by cross-attention, XattnError where it is not standard.
    """
    role, series, attending = _attending(staged, manifest)
    file = manifest.graphs[role].file
    graph = attention_graph(attending, series, keeps_logits=role != "text_encoder")
    written = str(PurePosixPath(file).with_name(f"{ATTENTION_ROLE}.onnx"))
    facts = require_standard(graph, ATTENTION_ROLE)
    require_valid(graph, ATTENTION_ROLE, (staged.folder / written).parent)
    entry = Graph(written, manifest.graphs[role].precision)
    stated = replace(manifest, graphs={**manifest.graphs, ATTENTION_ROLE: entry})
    return stated, facts, write_graph(staged, written, graph)


def attention_graph(graph: ModelProto, series: str, *, keeps_logits: bool) -> ModelProto:
    """A copy of `graph` with an output `attention_i`, float32 `[batch, heads, length, image_tokens]`, for each layer.

    series: of the keys and values that are attended to, `cross` or `image`. keeps_logits: whether of the other outputs
    the logits alone stay.
    Raises UserError where the attention to one of them is not found.
    """
    parts = graph_parts(graph)
    values = [name for value in parts.inputs if (name := value.name).startswith(f"{series}_value_")]
    tensors = [_weights_of(parts, name) for name in values]
    with_weights = {node.output[0]: node for _, node in tensors if node is not None}
    writer = GraphWriter(parts.constants())
    for node in parts.nodes:
        writer.keep(with_weights.get(node.output[0], node))
    frame = ModelProto()
    frame.CopyFrom(parts.frame)
    del frame.graph.output[:]
    frame.graph.output.extend(value for value in parts.outputs if value.name == "logits" or not keeps_logits)
    for layer, (weights, _) in enumerate(tensors):
        output = writer.node("Cast", [weights], f"attention_{layer}", "", to=TensorProto.FLOAT)
        axes = ["batch", None, "length", None]
        frame.graph.output.append(helper.make_tensor_value_info(output, TensorProto.FLOAT, axes))
    writer.nodes = _needed(writer.nodes, {value.name for value in frame.graph.output})
    return parts.rewritten(writer, frame).model(weights_inside=False)


def _attending(staged: StagedBundle, manifest: Manifest) -> tuple[str, str, ModelProto]:
    """The role whose text attends to the image, the series that it attends to, and its graph."""
    for role, series in _ATTENDING:
        if role not in manifest.graphs or (role == "decoder" and "text_encoder" in manifest.graphs):
            continue
        graph = read_graph(staged.folder / manifest.graphs[role].file)
        if any(value.name.startswith(f"{series}_value_") for value in graph.graph.input):
            return role, series, graph
    raise UserError(
        f"{manifest.name}: expected a model whose text attends to the image by cross-attention, found one in which the "
        "two are otherwise joined; leave --with-attention out"
    )


def _weights_of(graph: GraphParts, value: str) -> tuple[str, NodeProto | None]:
    """The tensor of the weights that the values `value` are added up by, and the `Attention` with it as an output.

    None where the graph computes the tensor already.
    """
    waiting, seen = [value], set[str]()
    while waiting:
        name = waiting.pop(0)
        for node in graph.nodes:
            if name not in node.input or node.op_type in ("Shape", "Size"):
                continue
            if node.op_type == "Attention" and name == node.input[2]:
                attention_node = _with_weights(node)
                return attention_node.output[3], attention_node
            if node.op_type in _PRODUCTS and (weights := _softmax_before(graph, node, name)) is not None:
                return weights, None
            waiting += [output for output in node.output if output not in seen]
            seen |= set(node.output)
    raise UserError(f"{value}: expected an attention that these values are for, found none; leave --with-attention out")


def _with_weights(node: NodeProto) -> NodeProto:
    """A copy of an `Attention` with its weights as fourth output."""
    node_with_weights = with_inputs(node, node.input)
    others = [attribute for attribute in node.attribute if attribute.name != "qk_matmul_output_mode"]
    del node_with_weights.attribute[:]
    node_with_weights.attribute.extend([*others, helper.make_attribute("qk_matmul_output_mode", _AFTER_SOFTMAX)])
    node_with_weights.output[:] = [*[*node.output, "", "", ""][:3], f"{node.output[0]}.weights"]
    return node_with_weights


def _softmax_before(graph: GraphParts, product: NodeProto, name: str) -> str | None:
    """The output of the softmax, a few nodes back, that the other factor of `product` is computed from."""
    producers = {output: node for node in graph.nodes for output in node.output}
    for factor in product.input:
        node = producers.get(factor) if factor != name else None
        for _ in range(_MOST_BETWEEN):
            if node is None or node.op_type == "Softmax":
                break
            node = producers.get(node.input[0])
        if node is not None and node.op_type == "Softmax":
            return str(node.output[0])
    return None


def _needed(nodes: Sequence[NodeProto], outputs: Collection[str]) -> list[NodeProto]:
    """The nodes that `outputs` are computed by, in their order."""
    needed, selected = set(outputs), []
    for node in reversed(nodes):
        if needed & set(node.output):
            selected.append(node)
            needed.update(name for inner in all_nodes([node]) for name in inner.input if name)
    return selected[::-1]
