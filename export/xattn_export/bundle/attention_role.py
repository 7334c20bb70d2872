"""The role `attention`: a graph of the bundle that gives its attention weights too, for pictures of what it looked at.

Made of the graph in which text attends to the image: the decoder, the classifier, or the text encoder. The one that is
made shares its weights where they lie in a file, and is a graph of its own, so that none of the others gets slower.
https://onnx.ai/onnx/operators/onnx__Attention.html (`qk_matmul_output_mode` 3 is after the softmax)
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import PurePosixPath

from onnx import ModelProto, NodeProto, TensorProto, helper

from xattn_export.bundle.graph_files import write_graph
from xattn_export.bundle.writer import StagedBundle
from xattn_export.graph.conformance import require_standard, require_valid
from xattn_export.graph.reading import read_graph
from xattn_runtime.bundle.graph_facts import GraphFacts
from xattn_runtime.bundle.manifest import ATTENTION_ROLE, Graph, Manifest
from xattn_runtime.errors import UserError

__all__ = ["attention_graph", "write_attention"]

# The graph in which text attends to the image, and the series of keys and values that it takes for that.
_ATTENDING = (("text_encoder", "image"), ("decoder", "cross"), ("classifier", "cross"))
_AFTER_SOFTMAX = 3
_PRODUCTS = ("MatMul", "MatMulInteger")
_MOST_BETWEEN = 8


def write_attention(staged: StagedBundle, manifest: Manifest) -> tuple[Manifest, GraphFacts, int]:
    """Write the role; the manifest with it, what the graph is made of, and its size in bytes.

    Raises UserError where no text attends to the image by cross-attention, XattnError where it is not standard.
    """
    role, series = _attending(staged, manifest)
    file = manifest.graphs[role].file
    graph = attention_graph(read_graph(staged.folder / file), series, keeps_logits=role != "text_encoder")
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
    out = ModelProto()
    out.CopyFrom(graph)
    values = [name for value in out.graph.input if (name := value.name).startswith(f"{series}_value_")]
    kept = [value for value in out.graph.output if value.name == "logits" or not keeps_logits]
    del out.graph.output[:]
    out.graph.output.extend(kept)
    for layer, name in enumerate(values):
        weights = _weights_of(out, name)
        node = helper.make_node("Cast", [weights], [f"attention_{layer}"], to=TensorProto.FLOAT)
        out.graph.node.append(node)
        axes = ["batch", None, "length", None]
        out.graph.output.append(helper.make_tensor_value_info(f"attention_{layer}", TensorProto.FLOAT, axes))
    _put_in_order(out)
    return out


def _attending(staged: StagedBundle, manifest: Manifest) -> tuple[str, str]:
    for role, series in _ATTENDING:
        if role not in manifest.graphs or (role == "decoder" and "text_encoder" in manifest.graphs):
            continue
        graph = read_graph(staged.folder / manifest.graphs[role].file)
        if any(value.name.startswith(f"{series}_value_") for value in graph.graph.input):
            return role, series
    raise UserError(
        f"{manifest.name}: expected a model whose text attends to the image by cross-attention, found one in which the "
        "two are otherwise joined; leave --with-attention out"
    )


def _weights_of(model: ModelProto, value: str) -> str:
    """The tensor of the weights that the values `value` are added up by."""
    waiting, seen = [value], set[str]()
    while waiting:
        name = waiting.pop(0)
        for node in model.graph.node:
            if name not in node.input or node.op_type in ("Shape", "Size"):
                continue
            if node.op_type == "Attention" and name == node.input[2]:
                return _given_by(node)
            if node.op_type in _PRODUCTS and (found := _softmax_before(model, node, name)) is not None:
                return found
            waiting += [output for output in node.output if output not in seen]
            seen |= set(node.output)
    raise UserError(f"{value}: expected an attention that these values are for, found none; leave --with-attention out")


def _given_by(node: NodeProto) -> str:
    """The fourth output of an `Attention`, asked for."""
    output = f"{node.output[0]}.weights"
    kept = [attribute for attribute in node.attribute if attribute.name != "qk_matmul_output_mode"]
    del node.attribute[:]
    node.attribute.extend([*kept, helper.make_attribute("qk_matmul_output_mode", _AFTER_SOFTMAX)])
    outputs = [*node.output, "", "", ""][:3]
    del node.output[:]
    node.output.extend([*outputs, output])
    return output


def _softmax_before(model: ModelProto, product: NodeProto, name: str) -> str | None:
    """The output of the softmax that the other factor of `product` is made of, a few nodes back."""
    makers = {output: node for node in model.graph.node for output in node.output}
    for factor in product.input:
        node = makers.get(factor) if factor != name else None
        for _ in range(_MOST_BETWEEN):
            if node is None or node.op_type == "Softmax":
                break
            node = makers.get(node.input[0])
        if node is not None and node.op_type == "Softmax":
            return str(node.output[0])
    return None


def _put_in_order(model: ModelProto) -> None:
    """Nodes that no output needs left out; the others stay in their order."""
    needed = {value.name for value in model.graph.output}
    kept = []
    for node in reversed(model.graph.node):
        if needed & set(node.output):
            kept.append(node)
            needed |= set(_taken(node))
    del model.graph.node[:]
    model.graph.node.extend(reversed(kept))
    weights = [tensor for tensor in model.graph.initializer if tensor.name in needed]
    del model.graph.initializer[:]
    model.graph.initializer.extend(weights)


def _taken(node: NodeProto) -> Iterator[str]:
    yield from (name for name in node.input if name)
    for attribute in node.attribute:
        for inner in attribute.g.node:
            yield from _taken(inner)
