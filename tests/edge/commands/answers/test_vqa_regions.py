"""`vqa` over region features, on a tiny bundle beside the same sums in numpy."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnx.numpy_helper
import onnx.parser
import pytest

from tests.support.tiny_bundle import LABELS, WORDS, write_manifest
from xattn_runtime.bundle import manifest as m
from xattn_runtime.bundle.folder import open_bundle
from xattn_runtime.preprocess.regions import RegionSpec

WIDTH = 5
QUESTION = "what is the red cat"
_RNG = np.random.default_rng(6)
EMBEDDING = _RNG.normal(size=(len(WORDS), WIDTH)).astype(np.float32)
ANSWERS = _RNG.normal(size=(WIDTH, len(LABELS))).astype(np.float32)
_GRAPHS = {
    "image_encoder": """image_encoder (float[batch,regions,5] visual_features) =>
        (float[batch,regions,5] image_tokens, int64[batch,regions] image_mask) {
        image_tokens = Tanh(visual_features)
        places = Shape<start=0, end=2>(visual_features)
        image_mask = Expand(one, places)
    }""",
    "classifier": """classifier (int64[batch,length] input_ids, int64[batch,length] attention_mask,
        float[batch,regions,5] image_tokens, int64[batch,regions] image_mask) =>
        (float[batch,5] logits, float[batch,5] probabilities) {
        words = Gather<axis=0>(embedding, input_ids)
        tokens = Concat<axis=1>(words, image_tokens)
        marks = Concat<axis=1>(attention_mask, image_mask)
        mask = Cast<to=1>(marks)
        column = Unsqueeze(mask, final)
        kept = Mul(tokens, column)
        sum = ReduceSum<keepdims=0>(kept, one)
        logits = MatMul(sum, answers)
        probabilities = Softmax<axis=-1>(logits)
    }""",
}
_CONSTANTS = {"final": np.array([-1]), "one": np.array([1]), "embedding": EMBEDDING, "answers": ANSWERS}


@pytest.fixture(scope="module")
def bundle(vqa_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = Path(shutil.copytree(vqa_bundle, tmp_path_factory.mktemp("regions") / "regions.xattn"))
    for role, text in _GRAPHS.items():
        model = onnx.parser.parse_model(f'<ir_version: 8, opset_import: ["" : 18]> {text}')
        used = {name for node in model.graph.node for name in node.input}
        model.graph.initializer.extend(
            onnx.numpy_helper.from_array(value, name) for name, value in _CONSTANTS.items() if name in used
        )
        onnx.save(model, folder / "graphs" / f"{role}.onnx")
    manifest: m.Manifest = open_bundle(vqa_bundle).manifest
    write_manifest(folder, replace(manifest, image_steps=(), regions=RegionSpec(WIDTH, 0)))
    return folder


def test_an_answer_over_regions(invoke, bundle, tmp_path):
    features = np.random.default_rng(1).normal(size=(7, WIDTH)).astype(np.float32)
    np.savez(tmp_path / "regions.npz", features=features)
    words = EMBEDDING[[WORDS.index(word) for word in QUESTION.split()]].sum(0)
    logits = (words + np.tanh(features).sum(0)) @ ANSWERS
    result = invoke("vqa", tmp_path / "regions.npz", QUESTION, "--bundle", bundle, "--json")
    document = json.loads(result.stdout)
    assert (result.exit_code, result.stderr) == (0, "")
    assert (document["image"], document["answer"]) == (str(tmp_path / "regions.npz"), LABELS[int(logits.argmax())])
    weights = np.exp(logits - logits.max())
    assert document["confidence"] == pytest.approx(float(weights.max() / weights.sum()), abs=1e-5)


def test_a_picture_where_regions_are_wanted(invoke, bundle, noise):
    result = invoke("vqa", noise(1), QUESTION, "--bundle", bundle)
    assert (result.exit_code, result.stdout, result.stderr.count("\n")) == (2, "", 1)
    assert "expected region features, an .npz with features [regions, 5]" in result.stderr


def test_regions_where_a_picture_is_wanted(invoke, vqa_bundle, tmp_path):
    np.savez(tmp_path / "regions.npz", features=np.ones((2, WIDTH)))
    result = invoke("vqa", tmp_path / "regions.npz", QUESTION, "--bundle", vqa_bundle)
    assert (result.exit_code, result.stdout, result.stderr.count("\n")) == (2, "", 1)
    assert "expected an image as PNG" in result.stderr
