"""`sentiment`: every set of modalities answers, and bad input is one line that says what was expected."""

import json
import wave
from dataclasses import asdict, replace
from itertools import combinations

import numpy as np
import pytest
import torch
from PIL import Image

from tests.edge.conftest import small_sentiment
from xattn_edge.data.vocabulary import piece_tokenizer
from xattn_edge.models import Checkpoint, build_model, save_checkpoint
from xattn_edge.training.pixels import image_preprocessing
from xattn_export import export_checkpoint
from xattn_runtime import load
from xattn_runtime.preprocess.speech import MelSpec

TEXT = "warm and funny"
SPEECH = MelSpec(bands=8, hop=320, longest_frames=40)
PARTS = ("text", "speech", "frames")


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    place = tmp_path_factory.mktemp("sentiment")
    torch.manual_seed(0)
    tokenizer = piece_tokenizer(["warm and funny", "dull, far too long"], 60)
    config = small_sentiment()
    config = replace(config, text=replace(config.text, vocabulary=tokenizer.get_vocab_size()))
    checkpoint = Checkpoint(
        path=place / "checkpoint",
        task="sentiment",
        name="small",
        license="Apache-2.0",
        config=config,
        model=build_model(config).eval(),
        tokenizer_json=tokenizer.to_str(),
        image_preprocessing=image_preprocessing(16),
        recipe={"speech": asdict(SPEECH)},
    )
    save_checkpoint(checkpoint)
    report = export_checkpoint(checkpoint.path, place / "small.xattn")
    assert report.golden.passed and len(report.golden.cases) >= 4
    return place / "small.xattn"


def write_wav(path, rate=16_000, seconds=0.5, channels=1, width=2):
    count = int(rate * seconds) * channels
    samples = (8000 * np.sin(np.arange(count) / 9)).astype("<i2")
    with wave.open(str(path), "wb") as stream:
        stream.setnchannels(channels)
        stream.setsampwidth(width)
        stream.setframerate(rate)
        stream.writeframes(samples.tobytes() if width == 2 else bytes(count * width))
    return path


@pytest.fixture
def given(tmp_path):
    """The arguments for each modality."""
    frames = tmp_path / "frames"
    frames.mkdir()
    for number in range(7):
        Image.new("RGB", (20, 20), (30 * number, 90, 200)).save(frames / f"{number}.png")
    return {
        "text": (TEXT,),
        "speech": ("--audio", write_wav(tmp_path / "speech.wav")),
        "frames": ("--frames", frames),
    }


@pytest.mark.parametrize("parts", [some for count in (1, 2, 3) for some in combinations(PARTS, count)])
def test_any_modality_may_be_missing(invoke, bundle, given, parts):
    arguments = [argument for part in parts for argument in given[part]]
    answer = invoke("sentiment", *arguments, "--bundle", bundle, "--json")
    assert answer.exit_code == 0, answer.stderr
    found = json.loads(answer.stdout)
    assert found["modalities"] == list(parts)
    assert sum(score["probability"] for score in found["scores"]) == pytest.approx(1, abs=1e-5)
    assert found["sentiment"] == found["scores"][0]["label"]
    assert len(found["frames"]) == (7 if "frames" in parts else 0)


def test_each_modality_counts(bundle, given):
    task = load(bundle)
    audio, frames = given["speech"][1], sorted(given["frames"][1].iterdir())
    samples = {"text": (TEXT, None, None), "two": (TEXT, audio, None), "all": (TEXT, audio, frames)}
    found = [task.rate(*sample).confidence for sample in samples.values()]
    assert len({round(value, 6) for value in found}) == 3


def test_more_frames_than_the_model_takes_are_thinned_out(bundle, given):
    task, frames = load(bundle), sorted(given["frames"][1].iterdir())
    thinned = [frames[place] for place in (0, 2, 4, 6)]
    assert task.rate(frames=frames).scores == task.rate(frames=thinned).scores


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"rate": 44_100}, "expected 16000 samples a second, found 44100"),
        ({"seconds": 0.01}, "expected 0.025 to 0.805 s (400 to 12880 samples), found 160 samples"),
        ({"seconds": 5}, "found 80000 samples; cut it"),
        ({"channels": 2}, "expected one channel, found 2; mix the channels into one"),
    ],
)
def test_speech_that_does_not_fit(invoke, bundle, tmp_path, change, message):
    answer = invoke("sentiment", "--audio", write_wav(tmp_path / "a.wav", **change), "--bundle", bundle)
    assert answer.exit_code == 2
    assert message in answer.stderr
    assert answer.stderr.count("\n") == 1


@pytest.mark.parametrize("data", [b"", b"RIFF", b"no sound at all, but text", None])
def test_a_file_that_is_no_speech(invoke, bundle, tmp_path, data):
    path = tmp_path / "a.wav"
    if data is not None:
        path.write_bytes(data)
    answer = invoke("sentiment", "--audio", path, "--bundle", bundle)
    assert answer.exit_code == 2
    assert answer.stderr.startswith(f"error: {path}: expected a WAV file")


def test_nothing_at_all(invoke, bundle):
    answer = invoke("sentiment", "--bundle", bundle)
    assert (answer.exit_code, "found none of them" in answer.stderr) == (2, True)
    assert invoke("sentiment", " ", "--bundle", bundle).exit_code == 2


def test_a_bundle_for_another_task(invoke, vqa_bundle):
    answer = invoke("sentiment", TEXT, "--bundle", vqa_bundle)
    assert (answer.exit_code, "expected a bundle for sentiment, found one for vqa" in answer.stderr) == (2, True)


def test_a_search_on_images_is_refused(invoke, bundle, noise, tmp_path):
    """Golden cases are too few to search on, so the advice is a mode; and the data set is named as what it is."""
    for data in (noise(0).parent, "golden"):
        asked = ("--mode", "auto", "--budget", "0.01", "--data", data)
        answer = invoke("quantize", bundle, "-o", tmp_path / "small.xattn", *asked)
        assert (answer.exit_code, answer.stdout) == (2, "")
        message = "expected a bundle whose inputs are images to search on, found one for sentiment; choose a mode"
        assert message in answer.stderr
    for asked in (
        ("quantize", bundle, "-o", tmp_path / "small.xattn", "--mode", "int8-static"),
        ("compare", bundle, bundle),
    ):
        answer = invoke(*asked, "--data", "sentiment")
        assert answer.exit_code == 2
        assert "or golden, found sentiment, which only `evaluate` reads" in answer.stderr
