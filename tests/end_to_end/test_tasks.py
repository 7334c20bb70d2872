"""The bundles for retrieval and sentiment that ship: what was promised of them, and what they answer."""

import json
from pathlib import Path

import pytest

from xattn_runtime import default_bundle, load, open_bundle, verify_bundle

CHECKOUT = Path(__file__).resolve().parents[2]
DEFAULTS = {"emoji-caption": "caption", "shapes-vqa": "vqa", "emoji-retrieval": "retrieval", "sentiment": "sentiment"}
MOST_BYTES = 15_000_000


def splits(name):
    """What int8 reached, as the bundle records it, and torch, as the checkpoint does."""
    record = open_bundle(default_bundle(DEFAULTS[name])).manifest.evaluation[0]
    report = json.loads((CHECKOUT / "checkpoints" / name / "report.json").read_text())
    return record["per_split"], report["splits"]


def test_all_defaults_together_are_small():
    manifests = [open_bundle(default_bundle(task)).manifest for task in DEFAULTS.values()]
    assert sum(file.bytes for manifest in manifests for file in manifest.files.values()) <= MOST_BYTES


@pytest.mark.parametrize("task", ["retrieval", "sentiment"])
def test_a_default_passes_its_golden_cases(task):
    bundle = open_bundle(default_bundle(task))
    assert {graph.precision for graph in bundle.manifest.graphs.values()} == {"int8"}
    assert verify_bundle(bundle).passed


def test_retrieval_is_as_good_as_promised():
    for scores in splits("emoji-retrieval"):
        assert scores["held-out-concepts/noto/text-to-image"]["recall_at_1"] > 0.25
        openmoji = {key.split("/", 2)[2]: value["recall_at_1"] for key, value in scores.items() if "openmoji" in key}
        assert openmoji["image-to-image"] > max(0.126, openmoji["image-to-image/raw-pixels"])
        assert scores["held-out-concepts/openmoji/text-to-image"]["recall_at_1"] > 0.126


def test_sentiment_is_as_good_as_promised():
    for scores in splits("sentiment"):
        assert scores["films/text"]["accuracy"] >= 0.75
        assert scores["films/text+frames"]["accuracy"] > scores["films/frames"]["accuracy"]


def test_what_the_defaults_answer():
    sentiment = load(default_bundle("sentiment"))
    assert sentiment.rate("a warm, funny and wonderful film").label == "positive"
    assert sentiment.rate("a dull and stupid mess").label == "negative"
