"""One graph of several: the image encoder, what reads the question, and what answers, joined by their tensors.

It joins existing graphs and refers to their files of weights; it computes nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from onnx import GraphProto, ModelProto, NodeProto, TensorProto, ValueInfoProto, helper

from xattn_export.graph.conformance import all_nodes
from xattn_export.graph.editing import Constants, GraphWriter, Names
from xattn_export.whole.pixels import write_pixels
from xattn_runtime.bundle.contract import layers_of, past_names, prefix_names
from xattn_runtime.bundle.decoding import NO_TOKEN
from xattn_runtime.bundle.manifest import Decoding, Manifest

__all__ = ["Composition", "compose", "new_composition"]


_LONGEST_PREFIX = 2**20


@dataclass
class Composition:
    """A graph that is being written, which `texts.py` may continue.

    inputs, outputs: name → ONNX element type and axes.
    """

    writer: GraphWriter
    inputs: dict[str, tuple[int, list[str | int]]] = field(default_factory=dict)
    outputs: dict[str, tuple[int, list[str | int]]] = field(default_factory=dict)

    def model(self, name: str, like: ModelProto) -> ModelProto:
        """The finished model, of the opset and IR version of `like`."""
        graph = helper.make_graph(
            self.writer.nodes,
            name,
            [helper.make_tensor_value_info(key, *value) for key, value in self.inputs.items()],
            [helper.make_tensor_value_info(key, *value) for key, value in self.outputs.items()],
            self.writer.constants.protos(),
        )
        return helper.make_model(
            graph,
            ir_version=like.ir_version,
            opset_imports=like.opset_import,
            producer_name=like.producer_name,
            producer_version=like.producer_version,
        )


def new_composition() -> Composition:
    """An empty one, which takes `images`, uint8 `[batch, height, width, 3]`."""
    names = Names()
    composition = Composition(GraphWriter(Constants(names=names, stem="whole/constant"), names, "whole"))
    composition.inputs["images"] = (TensorProto.UINT8, ["batch", "height", "width", 3])
    return composition


def compose(
    composition: Composition,
    manifest: Manifest,
    graphs: Mapping[str, ModelProto],
    prompt_ids: tuple[int, ...],
    question: str | None,
) -> None:
    """Write everything from `images` to what is generated, or to the answer's probabilities.

    graphs: role → graph: `image_encoder`, `text_encoder` if there is one, and `generator` or `classifier`.
    prompt_ids: the token ids of a caption's prompt. question: the tensor with a question's token ids, if any.
    """
    writer = composition.writer
    image = _joined(
        composition,
        graphs["image_encoder"].graph,
        "image",
        {"pixel_values": write_pixels(writer, "images", manifest.image_steps)},
    )
    batch = writer.op("Shape", "images", start=0, end=1)
    if "classifier" in graphs:
        if question is None:
            raise ValueError("a classifier needs a question")
        _answer(composition, graphs["classifier"].graph, image, question)
        return
    fed_inputs = question
    if "text_encoder" in graphs:
        text = question or _tiled(writer, prompt_ids, batch)
        ones = helper.make_tensor("value", TensorProto.INT64, [1], [1])
        mask = writer.op("ConstantOfShape", writer.op("Shape", text), value=ones)
        reader = graphs["text_encoder"].graph
        image_inputs = {tensor.name: image[tensor.name] for tensor in reader.input if tensor.name in image}
        image = _joined(composition, reader, "text", {"input_ids": text, "attention_mask": mask, **image_inputs})
        fed_inputs, prompt_ids = None, ()
    if manifest.decoding is None:
        raise ValueError("a decoder needs its decoding")
    _generate(composition, graphs["generator"].graph, image, manifest.decoding, batch, prompt_ids, fed_inputs)


def _answer(composition: Composition, graph: GraphProto, image: Mapping[str, str], question: str) -> None:
    """The answer's number and the probabilities of all; the question's padding is 0."""
    writer = composition.writer
    is_token = writer.op("Not", writer.op("Equal", question, writer.constants.integers(0)))
    mask = writer.op("Cast", is_token, to=TensorProto.INT64)
    image_inputs = {tensor.name: image[tensor.name] for tensor in graph.input if tensor.name in image}
    results = _joined(composition, graph, "answer", {"input_ids": question, "attention_mask": mask, **image_inputs})
    writer.publish(writer.op("ArgMax", results["probabilities"], axis=1, keepdims=0), "answer_ids")
    writer.publish(results["probabilities"], "probabilities")
    composition.outputs["answer_ids"] = (TensorProto.INT64, ["batch"])
    composition.outputs["probabilities"] = (TensorProto.FLOAT, ["batch", "answers"])


def _generate(
    composition: Composition,
    graph: GraphProto,
    image: Mapping[str, str],
    decoding: Decoding,
    batch: str,
    prompt_ids: tuple[int, ...],
    question: str | None,
) -> None:
    """Token ids and their log-probabilities, as the bundle's settings say, greedily."""
    writer = composition.writer
    integers = writer.constants.integers
    request = decoding.for_call(prompt_ids=prompt_ids)
    prompt = _tiled(writer, request.prompt_token_ids, batch)
    limit = integers(request.max_new_tokens)
    if question is not None:
        prompt = writer.op("Concat", prompt, question, axis=1)
        limit = _limit_after(writer, decoding, question)
    fed_inputs = {
        "input_ids": prompt,
        "max_new_tokens": limit,
        "end_token_ids": integers(request.end_token_ids or NO_TOKEN),
        "pad_token_id": integers(request.pad_token_id),
    }
    layers = layers_of("past", (tensor.name for tensor in graph.input))
    prefix = dict(zip(past_names(layers), prefix_names(layers), strict=True))
    for tensor in graph.input:
        if tensor.name in image:
            fed_inputs[tensor.name] = image[tensor.name]
        elif begun := image.get(prefix.get(tensor.name, "")):
            fed_inputs[tensor.name] = _of_any_length(writer, begun, batch)
        elif tensor.name.startswith("past_"):
            fed_inputs[tensor.name] = _first(writer, batch, tensor)
    results = _joined(composition, graph, "decode", fed_inputs)
    for name, element in (("token_ids", TensorProto.INT64), ("log_probs", TensorProto.FLOAT)):
        writer.publish(results[name], name)
        composition.outputs[name] = (element, ["batch", "steps"])


def _limit_after(writer: GraphWriter, decoding: Decoding, question: str) -> str:
    """How many tokens may follow the question, int64 `[]`; as `Decoding.for_call` has it."""
    integers = writer.constants.integers
    start = len(decoding.prompt_token_ids)
    room = (decoding.max_positions or start + decoding.max_new_tokens) - start
    most = room if decoding.max_length is None else min(room, decoding.max_length - start)
    length = writer.op("Squeeze", writer.op("Shape", question, start=1, end=2))
    left = writer.op("Sub", integers(most), length)
    return writer.op("Max", integers(1), writer.op("Min", integers(decoding.max_new_tokens), left))


def _tiled(writer: GraphWriter, token_ids: tuple[int, ...], batch: str) -> str:
    """`token_ids` in every row, int64 `[batch, length]`."""
    row = writer.constants.integers(np.array([token_ids], np.int64))
    return writer.op("Expand", row, writer.op("Concat", batch, writer.constants.integers([len(token_ids)]), axis=0))


def _of_any_length(writer: GraphWriter, cache: str, batch: str) -> str:
    """`cache`, `[batch, heads, length, width]`, all of it, by a slice whose end is known only at run time.

    It grows in the loop. OpenVINO takes a length that is known when the graph is loaded to be that of every turn.
    """
    integers = writer.constants.integers
    end = writer.op("Add", batch, integers([_LONGEST_PREFIX]))
    return writer.op("Slice", cache, integers([0]), end, integers([2]))


def _first(writer: GraphWriter, batch: str, past: ValueInfoProto) -> str:
    """What a decoder keeps before its first step: keys and values of no tokens, or a state of zeros."""
    sizes = [axis.dim_value for axis in past.type.tensor_type.shape.dim[1:]]  # 0 of the axis that grows
    shape = writer.op("Concat", batch, writer.constants.integers(sizes), axis=0)
    element = past.type.tensor_type.elem_type
    return writer.op("ConstantOfShape", shape, value=helper.make_tensor("value", element, [1], [0]))


def _joined(composition: Composition, graph: GraphProto, stem: str, inputs: Mapping[str, str]) -> dict[str, str]:
    """Write the nodes and weights of `graph` with names that begin with `stem`; its outputs by their names.

    `inputs` says which tensor each of its inputs is. Names inside of subgraphs stay as they are.
    """
    nodes = [NodeProto.FromString(node.SerializeToString()) for node in graph.node]
    weights = [TensorProto.FromString(tensor.SerializeToString()) for tensor in graph.initializer]
    inner = {*(tensor.name for tensor in weights), *(name for node in nodes for name in node.output if name)}
    names = {**{name: f"{stem}.{name}" for name in inner}, **inputs}
    for tensor in weights:
        tensor.name = names[tensor.name]
    for node in all_nodes(nodes):
        node.name = f"{stem}.{node.name}" if node.name else ""
        for places in (node.input, node.output):
            places[:] = [names.get(name, name) for name in places]
    composition.writer.nodes += nodes
    for tensor in weights:
        composition.writer.constants.put(tensor)
    return {tensor.name: names[tensor.name] for tensor in graph.output}
