"""Training: the same weights whether or not it was interrupted, and nothing of the user's overwritten."""

import dataclasses
import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.support.processes import children_of, processor_seconds, wait_until
from tests.support.slow import slow_after
from xattn_edge.data.easy_vqa import EasyVqa
from xattn_edge.models import load_checkpoint
from xattn_edge.training import Combination, train
from xattn_edge.training.loop import STATE_FILE
from xattn_edge.training.table import TRAININGS
from xattn_runtime.errors import CheckpointError, OutputError, UserError

CHECKOUT = Path(__file__).resolve().parents[3]
# With channels last and only 4 of them, oneDNN writes over the end of a 1x1 convolution's gradient on AVX2.
SMALL = {
    "channels": (8, 8),
    "blocks": (1,),
    "width": 16,
    "heads": 2,
    "image_layers": 0,
    "layers": 1,
    "batch": 4,
    "image_size_px": 32,
}


@pytest.fixture
def small(monkeypatch, fake_emoji):
    """Recipes of seconds; captioning keeps its images of 96 px."""
    eye = {"image_size_px": 96, "channels": (8, 8, 8, 8), "blocks": (1, 1, 1)}
    rows = {
        task: dataclasses.replace(row, recipe=dataclasses.replace(row.recipe, **SMALL | size, steps=6))
        for task, row, size in (("vqa", TRAININGS["vqa"], {}), ("caption", TRAININGS["caption"], eye))
    }
    monkeypatch.setattr("xattn_edge.training.run.TRAININGS", {**TRAININGS, **rows})
    monkeypatch.setattr("xattn_edge.data.emoji_captions._SCENES", 10)
    monkeypatch.setattr("xattn_edge.evaluation.floors.NearestPixels.SCENES", 20)
    monkeypatch.setattr("xattn_edge.training.loop._SAVE_EVERY_SECONDS", 0)
    whole = EasyVqa.samples
    monkeypatch.setattr(EasyVqa, "samples", lambda data, split: whole(data, split)[:400])


class Stop(Exception):
    """Stands for a kill: nothing gets a chance to tidy up."""


def stopping_after(step, error):
    def progress(state):
        if state.step == step:
            raise error

    return progress


@pytest.mark.parametrize(
    ("task", "error"),
    slow_after(1, [("vqa", Stop), ("caption", KeyboardInterrupt), ("vqa", KeyboardInterrupt), ("caption", Stop)]),
)
def test_an_interrupted_training_ends_with_the_same_weights(small, tmp_path, task, error):
    train(task, tmp_path / "whole", seed=3)
    with pytest.raises(error):
        train(task, tmp_path / "interrupted", seed=3, progress=stopping_after(4, error))
    assert (tmp_path / "interrupted" / STATE_FILE).exists()
    told = []
    train(task, tmp_path / "interrupted", seed=3, progress=told.append)
    resumed_at = 4 if error is KeyboardInterrupt else 3
    assert f"resuming after step {resumed_at}" in [state.message for state in told]
    assert next(state.step for state in told if state.loss is not None) == resumed_at + 1
    whole, resumed = (load_file(tmp_path / name / "model.safetensors") for name in ("whole", "interrupted"))
    assert whole.keys() == resumed.keys()
    for name, tensor in whole.items():
        assert torch.equal(tensor, resumed[name]), name


def test_a_finished_checkpoint_holds_what_is_needed_and_nothing_else(small, tmp_path):
    report = train("vqa", tmp_path / "new", seed=1)
    assert {path.name for path in (tmp_path / "new").iterdir()} == {
        "config.json",
        "model.safetensors",
        "report.json",
        "tokenizer.json",
    }
    checkpoint = load_checkpoint(tmp_path / "new")
    assert checkpoint.task == "vqa"
    assert checkpoint.recipe["seed"] == 1
    assert json.loads((tmp_path / "new" / "report.json").read_text()) == report.evaluation
    assert report.evaluation["n"] == 400
    assert 0 < report.evaluation["floors"]["question_only"] < 100


def test_a_caption_report_has_every_split_beside_its_floor(small, tmp_path):
    report = train("caption", tmp_path / "new").evaluation
    assert list(report["splits"]) == ["unseen-artist", "held-out-concepts", "held-out-tones", "unseen-pairs"]
    for scores in report["splits"].values():
        assert set(scores) == {"n", "exact_match", "bleu", "cider", "nearest_pixels"}
        assert set(scores["nearest_pixels"]) == {"exact_match", "bleu", "cider"}


def test_seeds_matter(small, tmp_path):
    weights = []
    for seed in (1, 2):
        train("vqa", tmp_path / str(seed), seed=seed, steps=1)
        weights.append(load_file(tmp_path / str(seed) / "model.safetensors")["head.weight"])
    assert not torch.equal(*weights)


@pytest.mark.parametrize("encoder", ["lstm", "transformer"])
def test_the_text_encoder_is_chosen(small, tmp_path, encoder):
    train("vqa", tmp_path / "new", steps=1, text_encoder=encoder)
    assert load_checkpoint(tmp_path / "new").config.text.name == encoder


def test_a_finished_checkpoint_is_not_overwritten_unasked(small, tmp_path):
    train("vqa", tmp_path / "new", steps=1)
    before = (tmp_path / "new" / "model.safetensors").read_bytes()
    with pytest.raises(OutputError, match="holds a finished checkpoint"):
        train("vqa", tmp_path / "new", steps=1, seed=9)
    assert (tmp_path / "new" / "model.safetensors").read_bytes() == before
    train("vqa", tmp_path / "new", steps=1, seed=9, overwrite=True)
    assert (tmp_path / "new" / "model.safetensors").read_bytes() != before


def test_the_users_own_files_are_never_deleted(small, tmp_path):
    (tmp_path / "new").mkdir()
    (tmp_path / "new" / "thesis.txt").write_text("years of work")
    for overwrite in (False, True):
        with pytest.raises(OutputError, match="not of a checkpoint"):
            train("vqa", tmp_path / "new", overwrite=overwrite)
    assert (tmp_path / "new" / "thesis.txt").read_text() == "years of work"


def test_another_unfinished_training_is_not_continued(small, tmp_path):
    with pytest.raises(Stop):
        train("vqa", tmp_path / "new", seed=1, progress=stopping_after(3, Stop))
    with pytest.raises(OutputError, match="seed 1 there, 2 here"):
        train("vqa", tmp_path / "new", seed=2)
    train("vqa", tmp_path / "new", seed=2, overwrite=True)


def test_a_damaged_state_is_one_clear_line(small, tmp_path):
    (tmp_path / "new").mkdir()
    (tmp_path / "new" / STATE_FILE).write_bytes(b"\0" * 64)
    with pytest.raises(CheckpointError, match=r"damaged .*start anew with --overwrite") as caught:
        train("vqa", tmp_path / "new")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"task": "dance"}, "unknown task 'dance'; expected one of vqa, caption"),
        ({"task": "caption", "text_encoder": "lstm"}, "has no text encoder"),
        ({"task": "vqa", "steps": 0}, "at least one training step, found 0"),
    ],
)
def test_impossible_arguments(tmp_path, arguments, message):
    with pytest.raises(UserError, match=message):
        train(output=tmp_path / "new", **arguments)
    assert not (tmp_path / "new").exists()


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
@pytest.mark.parametrize(("sent", "code"), [(signal.SIGINT, 130), (signal.SIGKILL, -signal.SIGKILL)])
def test_a_killed_command_can_go_on(tmp_path, sent, code):
    """The real command, killed from outside while it trains."""
    output = tmp_path / "new"
    options = ["-o", str(output), "--steps", "400", "--threads", "1"]
    command = [sys.executable, CHECKOUT / "cli.py", "train", "vqa", *options]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        wait_until(lambda: children_of(process.pid))  # which make the batches
        began = processor_seconds(process.pid)
        wait_until(lambda: processor_seconds(process.pid) > began + 1)  # several steps, however busy the machine is
        process.send_signal(sent)
        _, said = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == code
    assert "Traceback" not in said
    assert not (output / "config.json").exists()
    if sent == signal.SIGINT:
        assert said.strip().splitlines()[-1] == "interrupted"
        assert (output / STATE_FILE).exists()


@pytest.mark.parametrize(
    "combination",
    [
        Combination(weighting="hard"),
        Combination(similarity="cosine", fusion="dynamic"),
        Combination(mechanism="two_way"),
        Combination(mechanism="multi_hop", hops=2),
    ],
    ids=Combination.label,
)
def test_a_mechanism_is_trained_and_reported(small, tmp_path, combination):
    report = train("vqa", tmp_path / "new", steps=2, combination=combination)
    checkpoint = load_checkpoint(tmp_path / "new")
    assert checkpoint.name == f"shapes-vqa-{combination.label()}"
    assert checkpoint.config.mechanism.name == combination.mechanism
    assert checkpoint.config.mechanism.options.weighting == combination.weighting
    assert 0 <= report.evaluation["value"] <= 100 and report.evaluation["n"] == 400


def test_a_combination_that_cannot_be(small, tmp_path):
    with pytest.raises(UserError, match=r"mechanism: expected one of .*, found 'telepathy'"):
        train("vqa", tmp_path / "new", steps=1, combination=Combination(mechanism="telepathy"))
    with pytest.raises(UserError, match="leave --mechanism and its like out"):
        train("retrieval", tmp_path / "new", steps=1, combination=Combination())
    with pytest.raises(UserError, match="two-way: mechanism: expected text_to_image, as a caption grows word by word"):
        train("caption", tmp_path / "new", steps=1, combination=Combination(mechanism="two_way"))


def test_a_captioner_of_other_parts_is_trained(small, tmp_path):
    combination = Combination(weighting="hard", fusion="dynamic", layers=1)
    report = train("caption", tmp_path / "new", steps=2, combination=combination)
    checkpoint = load_checkpoint(tmp_path / "new")
    assert checkpoint.name == "emoji-caption-text-to-image-hard-dynamic"
    assert checkpoint.config.fusion.name == "dynamic" and len(checkpoint.model.layers) == 1
    assert report.evaluation["metric"] == "exact_match"
