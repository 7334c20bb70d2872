"""The whole model as one graph: pixels in, numbers or words out, as the bundle gives them step by step."""

import hashlib
import json
import random
import shutil
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper
from PIL import Image

from xattn_export import export_checkpoint, inspect_path
from xattn_export.graph.editing import Constants, GraphWriter, Names
from xattn_export.quantize import quantize_bundle
from xattn_export.whole.pixels import unwritable_step, write_pixels
from xattn_export.whole.texts import token_texts, write_texts
from xattn_runtime.bundle.folder import open_bundle
from xattn_runtime.errors import VerificationError
from xattn_runtime.loader import load
from xattn_runtime.preprocess.pipeline import Pipeline
from xattn_runtime.preprocess.steps import (
    CenterCrop,
    Flatten,
    Normalize,
    PadToSquare,
    Rescale,
    Resize,
    ResizeShortestEdge,
)
from xattn_runtime.preprocess.text import TextCodec
from xattn_runtime.verify.golden import verify_bundle

CHECKOUT = Path(__file__).resolve().parents[3]
MEAN, STD = (0.48, 0.46, 0.41), (0.27, 0.26, 0.28)
END = (Rescale(1 / 255), Normalize(MEAN, STD))
STEPS = {
    "emoji": (Flatten((255, 255, 255)), PadToSquare((255, 255, 255)), Resize(96, 96, "bicubic"), *END),
    "blip": (Flatten(None), Resize(128, 128, "bicubic"), *END),
    "vit": (Flatten(None), Resize(64, 64, "bilinear"), *END),
    "clip": (Flatten(None), ResizeShortestEdge(64, "bicubic"), CenterCrop(64, 64), *END),
    "crop": (Flatten(None), ResizeShortestEdge(48, "bilinear"), CenterCrop(64, 64), *END),
}
SIZES = ((300, 200), (97, 331), (64, 64), (20, 31), (640, 480), (64, 200))


def session(model):
    return onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])


def written(write, inputs, outputs):
    """A session of what `write` writes; it is told the inputs' names and returns the outputs' names."""
    names = Names()
    writer = GraphWriter(Constants(names=names), names)
    for name, output in zip(outputs, write(writer), strict=True):
        writer.publish(output, name)
    made = helper.make_graph(
        writer.nodes,
        "test",
        [helper.make_tensor_value_info(name, *value) for name, value in inputs.items()],
        [helper.make_tensor_value_info(name, *value) for name, value in outputs.items()],
        writer.constants.protos(),
    )
    return session(helper.make_model(made, ir_version=10, opset_imports=[helper.make_opsetid("", 23)]))


def picture(width, height, seed):
    """Smooth areas with edges and some noise, as photographs have them."""
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(0, 256, (6, 7, 3), np.uint8)).resize(
        (width, height), Image.Resampling.BICUBIC
    )
    pixels = np.asarray(coarse).astype(int) + rng.integers(-12, 13, (height, width, 3))
    pixels[height // 3 : height // 2, width // 4 :] = rng.integers(0, 256, 3)
    return np.clip(pixels, 0, 255).astype(np.uint8)


@pytest.mark.parametrize("name", STEPS)
def test_pixels_are_those_of_the_processor(name):
    inputs = {"images": (TensorProto.UINT8, ["batch", "height", "width", 3])}
    outputs = {"pixel_values": (TensorProto.FLOAT, ["batch", 3, "h", "w"])}
    graph = written(lambda writer: [write_pixels(writer, "images", STEPS[name])], inputs, outputs)
    steps = Pipeline(STEPS[name])
    for number, (width, height) in enumerate(SIZES):
        images = np.stack([picture(width, height, number), picture(width, height, number + 50)])
        found = graph.run(None, {"images": images})[0]
        expected = np.stack([steps(Image.fromarray(image)) for image in images])
        assert found.shape == expected.shape
        differences = np.abs(found - expected) * np.array(STD).reshape(3, 1, 1) * 255
        assert np.mean(differences < 0.01) >= 0.98
        assert differences.max() < 2.01


def test_a_step_without_a_form_is_named():
    assert "lanczos" in unwritable_step((Resize(8, 8, "lanczos"),))
    assert "no grey" in unwritable_step((PadToSquare((1, 2, 3)),))
    assert unwritable_step(STEPS["clip"]) is None


def opened(bundle, role):
    manifest = open_bundle(bundle).manifest
    return onnxruntime.InferenceSession(bundle / manifest.graphs[role].file, providers=["CPUExecutionProvider"])


def test_captions_of_pictures_of_any_size(exported):
    task = load(exported["caption"])
    whole, words = opened(exported["caption"], "whole"), opened(exported["caption"], "whole_text")
    image = np.asarray(Image.open(CHECKOUT / "examples" / "gem-and-diamond.png").convert("RGB"))
    for size in ((image.shape[1], image.shape[0]), (300, 211), (90, 160)):
        resized = np.asarray(Image.fromarray(image).resize(size, Image.Resampling.LANCZOS))
        expected = task.caption(resized, beams=1)
        ids, log_probs = whole.run(["token_ids", "log_probs"], {"images": resized[None]})
        assert tuple(ids[0][: len(expected.token_ids)].tolist()) == expected.token_ids
        assert ids[0, -1] in task.bundle.manifest.decoding.end_token_ids
        assert log_probs.mean() == pytest.approx(expected.score, abs=0.05)
        assert words.run(["texts"], {"images": resized[None]})[0].tolist() == [expected.text]


def test_batches_are_what_their_pictures_are_alone(exported):
    words = opened(exported["caption"], "whole_text")
    images = np.stack([picture(120, 100, seed) for seed in range(3)])
    texts, ids = words.run(["texts", "token_ids"], {"images": images})
    alone = [words.run(["texts", "token_ids"], {"images": image[None]}) for image in images]
    assert texts.tolist() == [one[0][0] for one in alone]
    assert ids.shape[1] == max(one[1].shape[1] for one in alone)


@pytest.mark.slow
def test_questions_as_ids_and_as_strings(checkpoints, tmp_path):
    export_checkpoint(checkpoints["transformer"], tmp_path / "vqa.xattn")
    task = load(tmp_path / "vqa.xattn")
    whole, words = opened(tmp_path / "vqa.xattn", "whole"), opened(tmp_path / "vqa.xattn", "whole_text")
    image = np.asarray(Image.open(CHECKOUT / "examples" / "blue-triangle.png").convert("RGB"))
    questions = [
        "what color is the shape?",
        "What shape is in the image",
        "is there a circle?",
        "is  a teapot red, no?",
    ]
    codec = TextCodec(task.bundle.file(task.bundle.manifest.tokenizer.file), task.bundle.manifest.tokenizer)
    expected = [task.ask(image, question, top_k=100) for question in questions]
    images = np.stack([image] * len(questions))
    texts, probabilities = words.run(
        ["texts", "probabilities"], {"images": images, "questions": np.array(questions, object)}
    )
    assert texts.tolist() == [answer.answer for answer in expected]
    labels = task.bundle.manifest.labels
    for row, answer in zip(probabilities, expected, strict=True):
        assert dict(zip(labels, row.tolist(), strict=True)) == pytest.approx(dict(answer.top), abs=1e-4)
    for question, answer in zip(questions, expected, strict=True):
        ids = np.array([codec.encode_question(question).ids])
        numbers = whole.run(["answer_ids"], {"images": image[None], "input_ids": ids})[0]
        assert [labels[number] for number in numbers] == [answer.answer]


def test_every_weight_lies_in_one_file(exported):
    for bundle in exported.values():
        graphs = bundle / "graphs"
        whole = onnx.load(graphs / "whole.onnx", load_external_data=False)
        body = [a.g for node in whole.graph.node if node.op_type == "Loop" for a in node.attribute if a.name == "body"]
        tensors = [tensor for graph in (whole.graph, *body) for tensor in graph.initializer]
        inside = sum(len(tensor.raw_data) for tensor in tensors if tensor.data_location != TensorProto.EXTERNAL)
        outside = {entry.value for tensor in tensors for entry in tensor.external_data if entry.key == "location"}
        assert len(outside) >= 2
        assert outside < {path.name for path in graphs.iterdir()}
        assert inside < 0.05 * sum(path.stat().st_size for path in graphs.glob("*.data"))
        assert not list(graphs.glob("whole*.data"))


@pytest.mark.parametrize("mode", ["fp16", "int8", "int8-weight", "int4"])
def test_quantized_bundles_have_both(exported, mode, tmp_path):
    quantize_bundle(exported["caption"], tmp_path / "small.xattn", mode=mode)
    manifest = open_bundle(tmp_path / "small.xattn").manifest
    assert manifest.graphs["whole"].precision == manifest.graphs["decoder"].precision
    report = verify_bundle(tmp_path / "small.xattn")
    assert [whole.role for whole in report.wholes] == ["whole", "whole_text"]
    assert report.passed


def test_a_damaged_graph_fails_the_verification(exported, tmp_path):
    copy = shutil.copytree(exported["lstm"], tmp_path / "copy.xattn")
    file = copy / "graphs" / "whole.onnx"
    model = onnx.load(file, load_external_data=False)
    for node in model.graph.node:
        if node.op_type == "Div" and node.input[0].startswith("whole"):
            node.op_type = "Mul"
    onnx.save(model, file)
    manifest = json.loads((copy / "manifest.json").read_text())
    manifest["files"]["graphs/whole.onnx"] = {
        "bytes": file.stat().st_size,
        "sha256": hashlib.sha256(file.read_bytes()).hexdigest(),
    }
    (copy / "manifest.json").write_text(json.dumps(manifest))
    report = verify_bundle(copy)
    assert not report.passed
    with pytest.raises(VerificationError, match="whole: expected on cpu what the bundle's graphs give"):
        report.raise_if_failed()


def test_words_are_proved_over_the_vocabulary(exported):
    bundle = open_bundle(exported["caption"])
    codec = TextCodec(bundle.file(bundle.manifest.tokenizer.file), bundle.manifest.tokenizer)
    vocabulary = len(json.loads(bundle.file(bundle.manifest.tokenizer.file).read_text())["model"]["vocab"])
    texts = token_texts(codec, vocabulary)
    inputs = {"token_ids": (TensorProto.INT64, ["batch", "steps"])}
    outputs = {"texts": (TensorProto.STRING, ["batch"])}
    graph = written(lambda writer: [write_texts(writer, "token_ids", texts)], inputs, outputs)
    chance = random.Random(5)
    rows = [[number] * 3 for number in range(vocabulary)]
    rows += [[chance.randrange(vocabulary) for _ in range(3)] for _ in range(500)]
    found = graph.run(None, {"token_ids": np.array(rows)})[0].tolist()
    assert found == [codec.decode(row) for row in rows]
    assert len(set(found)) > vocabulary / 2
    shown = vocabulary - 1, 0
    graph = written(lambda writer: [write_texts(writer, "token_ids", texts, shown)], inputs, outputs)
    found = graph.run(None, {"token_ids": np.array(rows)})[0].tolist()
    assert found == [codec.decode((*shown, *row)) for row in rows]


def test_why_there_are_no_words(exported):
    manifest = open_bundle(exported["lstm"]).manifest
    assert "whole" in manifest.graphs
    assert manifest.absent == {"whole_text": "opset 18 has no StringConcat; export with --opset 20 or later"}
    assert inspect_path(exported["lstm"]).to_dict()["absent"] == manifest.absent


def test_without_them(checkpoints, tmp_path):
    export_checkpoint(checkpoints["lstm"], tmp_path / "plain.xattn", whole=False)
    manifest = open_bundle(tmp_path / "plain.xattn").manifest
    assert set(manifest.graphs) == {"image_encoder", "classifier"}
    assert "--no-whole" in manifest.absent["whole"]
    quantize_bundle(tmp_path / "plain.xattn", tmp_path / "small.xattn", mode="int8")
    assert "--no-whole" in open_bundle(tmp_path / "small.xattn").manifest.absent["whole"]
