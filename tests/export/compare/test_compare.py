"""Two bundles compared: what is the same is found the same, and a planted difference is found where it was planted."""

import json
import re
import shutil
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper
from PIL import Image
from typer.testing import CliRunner

from xattn_edge.commands.app import app
from xattn_edge.evaluation.samples import Sample, Samples, calibration_samples
from xattn_export import quantize_bundle
from xattn_export.compare import compare_bundles
from xattn_export.compare.layers import GraphPair
from xattn_export.compare.page import page, thumbnail
from xattn_runtime.bundle.folder import file_digest, open_bundle
from xattn_runtime.errors import UserError
from xattn_runtime.execution.providers import CPU
from xattn_runtime.execution.session import SessionSettings

ONE_THREAD = (SessionSettings(CPU, 1), SessionSettings(CPU, 1))


def damaged(bundle: Path, target: Path, role: str, pattern: str, factor: float) -> Path:
    """A copy in which the first weight whose name matches is multiplied, its hash mended."""
    shutil.copytree(bundle, target)
    path = target / "graphs" / f"{role}.onnx"
    model = onnx.load(path)
    weight = next(
        tensor for tensor in model.graph.initializer if re.search(pattern, tensor.name) and len(tensor.dims) > 1
    )
    weight.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(weight) * np.float32(factor), weight.name))
    onnx.save(model, path)
    manifest = json.loads((target / "manifest.json").read_text())
    manifest["files"][f"graphs/{role}.onnx"] = {"sha256": file_digest(path), "bytes": path.stat().st_size}
    (target / "manifest.json").write_text(json.dumps(manifest))
    return target


def compared(first: Path, second: Path, samples: Samples | None = None, **options):
    bundles = open_bundle(first), open_bundle(second)
    return compare_bundles(bundles, ONE_THREAD, samples or calibration_samples(bundles[0], "golden", 10), **options)


@pytest.mark.parametrize("kind", ["caption", "lstm"])
def test_a_bundle_equals_itself(exported, kind):
    report = compared(exported[kind], exported[kind])
    assert report.agreement == 1 and not report.changes
    for component in report.components.values():
        assert component.runs and len(component.layers) > 10
        assert component.relative_rms == 0 and component.parts_at is None


def test_a_planted_difference_is_found_in_its_layer(exported, tmp_path):
    other = damaged(exported["lstm"], tmp_path / "other.xattn", "image_encoder", "position", 1.5)
    report = compared(exported["lstm"], other)
    encoder, classifier = report.components["image_encoder"], report.components["classifier"]
    graph = onnx.load(other / "graphs" / "image_encoder.onnx").graph
    added = next(node for node in graph.node if any("position" in name for name in node.input))
    assert encoder.parts_at is not None and encoder.parts_at.tensor == added.output[0]
    assert all(layer.relative_rms < 1e-6 for layer in encoder.layers[: encoder.layers.index(encoder.parts_at)])
    assert classifier.relative_rms == 0  # the same inputs were given to both


def test_examples_that_change_are_shown(exported, tmp_path):
    other = damaged(exported["lstm"], tmp_path / "other.xattn", "classifier", r"\bhead\b", -1.0)
    picture = np.full((40, 30, 3), 200, np.uint8)
    samples = Samples(
        "made", [Sample(picture, "what color is the shape ?", "red"), Sample(picture, "is there a circle ?")]
    )
    report = compared(exported["lstm"], other, samples)
    assert report.agreement < 1 and report.right is None
    change = report.changes[0]
    assert change.first != change.second and change.token is None and change.reference == "red"
    html = page(report, {change.number: thumbnail(picture)})
    assert "data:image/png;base64," in html and change.first in html and "what color is the shape ?" in html
    assert not re.search(r"(src|href)=\"(?!data:)", html) and "<script" not in html
    assert json.loads(json.dumps(report.to_dict()))["changes"][0]["second"] == change.second


def test_what_the_page_shows_is_text(exported):
    samples = Samples("<i>made</i>", [Sample(np.zeros((8, 8, 3), np.uint8), "is there a <b> ?", None)])
    report = compared(exported["lstm"], exported["lstm"], samples)
    assert "<i>made" not in page(report, {})
    assert thumbnail("/nowhere.png") == ""


def test_a_quantized_bundle(exported, tmp_path):
    quantize_bundle(exported["caption"], tmp_path / "int8.xattn", mode="int8")
    report = compared(exported["caption"], tmp_path / "int8.xattn")
    decoder = report.components["decoder"]
    assert decoder.relative_rms is not None and 1e-4 < decoder.relative_rms < 0.2
    assert decoder.parts_at is not None and decoder.runs > 3


def test_integers_are_not_looked_into(exported, tmp_path):
    bundle = open_bundle(exported["caption"])
    pair = GraphPair.open("decoder", (bundle, bundle), ONE_THREAD, tmp_path)
    operators = {name: node.op_type for node in pair.model.graph.node for name in node.output}
    assert {"Range", "Shape"} <= set(operators.values())
    looked_into = {operators[name] for name in pair.names}
    assert "Attention" in looked_into and not {"Range", "Shape"} & looked_into


def test_layers_that_nothing_ran_through(exported):
    report = compared(exported["lstm"], exported["lstm"], looked_into=0)
    assert {component.note for component in report.components.values()} == {"no example runs it"}


def test_what_cannot_be_compared(exported, tmp_path):
    with pytest.raises(UserError, match=r"expected a bundle for caption, as .* is, found vqa"):
        compared(exported["caption"], exported["lstm"])
    with pytest.raises(UserError, match="expected examples to compare on, found none"):
        compared(exported["lstm"], exported["lstm"], Samples("empty", []))


def test_the_command(exported, tmp_path):
    Image.new("RGB", (20, 20), "red").save(tmp_path / "red.png")
    bundle = exported["caption"]

    def call(*arguments):
        return CliRunner().invoke(app, ["compare", *map(str, arguments)], prog_name="xattn-edge")

    done = call(
        bundle, "--provider", "cpu", "--provider", "cpu", "--fallback", "--data", tmp_path,
        "--html", tmp_path / "a.html", "--json",
    )  # fmt: skip
    assert done.exit_code == 0 and json.loads(done.stdout)["agreement"] == 1.0
    assert (tmp_path / "a.html").read_text().startswith("<!doctype html>")
    assert "100.0% answered alike" in call(bundle, bundle).stdout
    assert call(bundle).exit_code == 2
    assert call(bundle, bundle, bundle).exit_code == 2
    lost = call(bundle, bundle, "--html", tmp_path / "no" / "a.html")
    assert lost.exit_code == 2 and "expected a place to write to" in lost.stderr
