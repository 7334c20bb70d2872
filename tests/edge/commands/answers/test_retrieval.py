"""`retrieve` and `classify` on tiny bundles, beside the same sums in numpy."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnx.numpy_helper
import onnx.parser
import pytest
from PIL import Image

from tests.support.tiny_bundle import UNKNOWN, WORDS, reference_pixels, write_manifest
from xattn_runtime.bundle import manifest as m
from xattn_runtime.bundle.folder import open_bundle

WIDTH = 3
SCALE, BIAS = 8.0, -1.5
LABELS = ("cat", "red dog", "green house")
EMBEDDING = np.random.default_rng(4).normal(size=(len(WORDS), WIDTH)).astype(np.float32)

_GRAPHS = {
    "image_encoder": """image_encoder (float[batch,3,16,16] pixel_values) => (float[batch,3] image_embeddings) {
        mean = ReduceMean<keepdims=0>(pixel_values, places)
        image_embeddings = LpNormalization<axis=-1, p=2>(mean)
    }""",
    "text_encoder": """text_encoder (int64[batch,length] input_ids, int64[batch,length] attention_mask) =>
        (float[batch,3] text_embeddings) {
        mask = Cast<to=1>(attention_mask)
        column = Unsqueeze(mask, final)
        words = Gather<axis=0>(embedding, input_ids)
        kept = Mul(words, column)
        sum = ReduceSum<keepdims=0>(kept, one)
        text_embeddings = LpNormalization<axis=-1, p=2>(sum)
    }""",
}
_CONSTANTS = {
    "places": np.array([2, 3]),
    "final": np.array([-1]),
    "one": np.array([1]),
    "embedding": EMBEDDING,
}


@pytest.fixture(scope="module")
def bundles(vqa_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A bundle for retrieval of each kind of similarity."""
    place, found = tmp_path_factory.mktemp("retrieval"), {}
    for kind in ("cosine", "softmax", "sigmoid"):
        folder = found[kind] = Path(shutil.copytree(vqa_bundle, place / f"{kind}.xattn"))
        (folder / "graphs" / "classifier.onnx").unlink()
        for role, text in _GRAPHS.items():
            model = onnx.parser.parse_model(f'<ir_version: 8, opset_import: ["" : 18]> {text}')
            used = {name for node in model.graph.node for name in node.input}
            model.graph.initializer.extend(
                onnx.numpy_helper.from_array(value, name) for name, value in _CONSTANTS.items() if name in used
            )
            onnx.save(model, folder / "graphs" / f"{role}.onnx")
        manifest = open_bundle(vqa_bundle).manifest
        similarity = m.Similarity(kind) if kind == "cosine" else m.Similarity(kind, SCALE, BIAS)
        cases = tuple(replace(case, question=None, text=None, query="cat") for case in manifest.golden.cases)
        write_manifest(
            folder,
            replace(
                manifest,
                task="retrieval",
                graphs={role: m.Graph(f"graphs/{role}.onnx", "fp32") for role in _GRAPHS},
                labels=None,
                similarity=similarity,
                golden=replace(manifest.golden, cases=cases),
            ),
        )
    return found


def _length_one(values: np.ndarray) -> np.ndarray:
    return values / np.linalg.norm(values)


def _image(path: Path) -> np.ndarray:
    return _length_one(reference_pixels(path)[0].mean((1, 2)))


def _text(text: str) -> np.ndarray:
    words = [WORDS.index(word) if word in WORDS else UNKNOWN for word in text.split()]
    return _length_one(EMBEDDING[words].sum(0))


def _probabilities(path: Path, kind: str, template: str) -> dict[str, float]:
    scores = np.array([SCALE * _image(path) @ _text(template.format(label=label)) + BIAS for label in LABELS])
    values = 1 / (1 + np.exp(-scores)) if kind == "sigmoid" else np.exp(scores) / np.exp(scores).sum()
    return dict(zip(LABELS, values.tolist(), strict=True))


@pytest.mark.parametrize("kind", ["softmax", "sigmoid"])
@pytest.mark.parametrize("template", ["a photo of a {label}", "the {label}"])
def test_classify_json(invoke, bundles, noise, kind, template):
    picture = noise(3)
    options = () if template == "a photo of a {label}" else ("--template", template)
    result = invoke("classify", picture, *LABELS, "--bundle", bundles[kind], "--json", "--top-k", "2", *options)
    document = json.loads(result.stdout)
    assert (result.exit_code, result.stderr) == (0, "")
    assert set(document) == {
        "image", "label", "probability", "results", "among_labels", "template", "timing_ms", "provider", "bundle",
    }  # fmt: skip
    assert set(document["timing_ms"]) == {"preprocess", "encode", "labels", "total"}
    expected = _probabilities(picture, kind, template)
    best = sorted(LABELS, key=lambda label: -expected[label])[:2]
    assert [found["label"] for found in document["results"]] == best
    for found in document["results"]:
        assert set(found) == {"label", "probability", "cosine"}
        assert found["probability"] == pytest.approx(expected[found["label"]], abs=1e-5)
    assert (document["image"], document["label"], document["template"]) == (str(picture), best[0], template)
    assert document["probability"] == document["results"][0]["probability"]
    assert document["among_labels"] is (kind == "softmax")


def test_classify_prints_a_table(invoke, bundles, noise, tmp_path):
    (tmp_path / "labels.txt").write_text("red dog\n\n green house \n", encoding="utf-8-sig")
    result = invoke("classify", noise(5), "cat", "--labels", tmp_path / "labels.txt", "-b", bundles["softmax"])
    expected = _probabilities(noise(5), "softmax", "a photo of a {label}")
    best = sorted(LABELS, key=lambda label: -expected[label])
    assert (result.exit_code, result.stderr) == (0, "")
    assert [line.rsplit(maxsplit=1) for line in result.stdout.splitlines()] == [
        [label, f"{expected[label]:.1%}"] for label in best
    ]


def test_a_single_label_where_each_is_judged_by_itself(invoke, bundles, noise):
    document = json.loads(invoke("classify", noise(3), "cat", "-b", bundles["sigmoid"], "--json").stdout)
    expected = _probabilities(noise(3), "sigmoid", "a photo of a {label}")["cat"]
    assert document["probability"] == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize(
    ("kind", "labels", "message"),
    [
        ("softmax", (), "labels: expected at least 2, found 0; say what the image may show"),
        ("softmax", ("cat",), "labels: expected at least 2, found 1; this model chooses among them"),
        ("softmax", ("cat", "cat "), "labels: expected each label once, found 'cat' twice; remove one"),
        ("softmax", ("cat", ""), "labels: expected a text, found an empty one as number 2; remove it"),
        ("softmax", ("cat", "red " * 8), "label: expected at most 8 tokens, found 12"),
        ("softmax", ("cat", "dog", "--template", "a photo"), "template: expected a text with {label} in it once"),
        ("softmax", ("--labels", "no-such-file"), "no-such-file: no such file or directory; check the path"),
        ("softmax", ("--labels", "BYTES"), "expected text in UTF-8, a label a line, found other bytes"),
        ("cosine", ("cat", "dog"), "expected a model that states probabilities, such as CLIP or SigLIP"),
    ],
)
def test_what_cannot_be_classified(invoke, bundles, noise, tmp_path, kind, labels, message):
    (tmp_path / "bytes").write_bytes(b"\xff\xfe\x00")
    given = [str(tmp_path / "bytes") if label == "BYTES" else label for label in labels]
    result = invoke("classify", noise(3), *given, "-b", bundles[kind])
    assert (result.exit_code, result.stdout, result.stderr.count("\n")) == (2, "", 1)
    assert message in result.stderr


def test_pictures_are_found_by_text_and_by_picture(invoke, bundles, tmp_path):
    rng = np.random.default_rng(2)
    for number in range(20):
        picture = rng.integers(0, 256, (1, 1, 3), dtype=np.uint8).repeat(20, 0).repeat(20, 1)
        Image.fromarray(picture).save(tmp_path / f"{number:02}.png")
    pictures = sorted(tmp_path.glob("*.png"))
    (tmp_path / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    for query, wanted in (("red cat", _text("red cat")), (str(pictures[7]), _image(pictures[7]))):
        result = invoke("retrieve", query, "--in", tmp_path, "-b", bundles["softmax"], "--json", "--top-k", "20")
        assert (result.exit_code, result.stderr.count("\n")) == (2, 1)
        assert "broken.png" in result.stderr
        results = json.loads(result.stdout)["results"]
        cosines = {str(picture): float(_image(picture) @ wanted) for picture in pictures}
        assert [found["image"] for found in results] == sorted(cosines, key=lambda picture: -cosines[picture])
        assert [found["cosine"] for found in results] == pytest.approx(sorted(cosines.values(), reverse=True), abs=1e-5)
        assert all((found["probability"] is None) == (query != "red cat") for found in results)


def test_classify_without_a_bundle_says_what_to_make(invoke, noise):
    result = invoke("classify", noise(0), "cat", "dog")
    assert (result.exit_code, result.stdout) == (2, "")
    assert "expected --bundle with a retrieval bundle of CLIP or SigLIP, found none" in result.stderr
    assert "xattn-edge export openai/clip-vit-base-patch32 -o clip.xattn" in result.stderr
