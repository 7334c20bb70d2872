"""The bundles that ship: they answer, they are as good as the trained models, and they are small."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

import xattn_edge
from tests.support.programs import requires_program
from xattn_edge.data.emoji_images import is_fetched
from xattn_edge.evaluation import evaluate
from xattn_export import export_checkpoint
from xattn_runtime import default_bundle, open_bundle, verify_bundle

CHECKOUT = Path(__file__).resolve().parents[2]
DATA = {"shapes-vqa": "easy-vqa", "emoji-caption": "emoji"}
TASKS = {"shapes-vqa": "vqa", "emoji-caption": "caption"}


def trained(name):
    """What torch reached on the held-out split when the checkpoint was made."""
    return json.loads((CHECKOUT / "checkpoints" / name / "report.json").read_text())


@pytest.fixture(scope="module")
def data():
    """Fetches the emoji pictures where that has not happened yet."""
    from xattn_edge.data import fetch

    if not is_fetched():
        requires_program("npm", package="npm")
        fetch("emoji")


@pytest.mark.parametrize("name", DATA)
def test_a_default_bundle_is_small_and_passes_its_golden_cases(name):
    bundle = open_bundle(default_bundle(TASKS[name]))
    assert {graph.precision for graph in bundle.manifest.graphs.values()} == {"int8"}
    assert sum(file.bytes for file in bundle.manifest.files.values()) < 8_000_000
    report = verify_bundle(bundle)
    assert report.passed
    assert len(report.cases) >= 2


def test_the_examples_of_the_readme():
    caption = xattn_edge.load(default_bundle("caption")).caption(CHECKOUT / "examples" / "gem-and-diamond.png")
    assert caption.text == "gem stone to the left of a diamond suit"
    shapes = xattn_edge.load(default_bundle("vqa"))
    picture = shapes.encode(CHECKOUT / "examples" / "blue-triangle.png")
    assert shapes.ask(picture, "what color is the shape?").answer == "blue"
    assert shapes.ask(picture, "What shape is in the image").answer == "triangle"
    assert shapes.ask(picture, "is there a circle?").answer == "no"


@pytest.mark.slow
@pytest.mark.parametrize("name", DATA)
def test_fp32_is_as_good_as_torch_and_int8_as_good_as_fp32(data, name, tmp_path):
    export_checkpoint(CHECKOUT / "checkpoints" / name, tmp_path / "fp32.xattn")
    fp32 = evaluate(tmp_path / "fp32.xattn", DATA[name])
    int8 = evaluate(default_bundle(TASKS[name]), DATA[name])
    assert fp32.n == int8.n == trained(name)["n"]
    assert fp32.value == pytest.approx(trained(name)["value"], abs=0.05)
    assert int8.value >= fp32.value - 0.2


def test_shapes_are_answered_as_well_as_promised():
    assert trained("shapes-vqa")["value"] >= 99.5
    assert trained("shapes-vqa")["floors"]["question_only"] == pytest.approx(67.0, abs=0.05)


@pytest.mark.parametrize("metric", ["exact_match", "bleu", "cider"])
@pytest.mark.parametrize("split", ["unseen-artist", "held-out-concepts", "held-out-tones", "unseen-pairs"])
def test_captions_beat_the_nearest_picture(split, metric):
    scores = trained("emoji-caption")["splits"][split]
    assert scores[metric] > scores["nearest_pixels"][metric]


def test_the_runtime_alone_answers_in_a_process_without_torch():
    program = """
import sys
import xattn_edge
from xattn_runtime import default_bundle
print(xattn_edge.load(default_bundle("vqa")).ask(sys.argv[1], "what color is the shape?").answer)
print(sorted({"torch", "onnx", "transformers"} & set(sys.modules)))
"""
    picture = CHECKOUT / "examples" / "blue-triangle.png"
    result = subprocess.run([sys.executable, "-c", program, picture], capture_output=True, text=True, check=True)
    assert result.stdout.splitlines() == ["blue", "[]"]
