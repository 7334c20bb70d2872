"""From a checkpoint to a bundle that answers as the model does."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from xattn_edge.models import load_checkpoint
from xattn_export import export_checkpoint, exporter
from xattn_runtime.bundle.folder import open_bundle
from xattn_runtime.errors import CheckpointError, ImageError, OutputError, UserError, XattnError
from xattn_runtime.loader import load
from xattn_runtime.verify.golden import verify_bundle


def damaged(source: Path, target: Path, **config: object) -> Path:
    """A copy of a checkpoint with other values in its config.json."""
    target.mkdir()
    for path in source.iterdir():
        (target / path.name).write_bytes(path.read_bytes())
    values = json.loads((source / "config.json").read_text())
    (target / "config.json").write_text(json.dumps(values | config))
    return target


def test_caption_bundle(exported, checkpoints):
    manifest = open_bundle(exported["caption"]).manifest
    assert (manifest.task, manifest.attention, manifest.opset) == ("caption", "standard", 23)
    assert manifest.decoding is not None
    assert manifest.decoding.max_new_tokens == 11
    assert manifest.provenance.source == "tiny-caption"
    assert manifest.provenance.command == "pytest"
    assert verify_bundle(exported["caption"]).passed
    task, model = load(exported["caption"]), load_checkpoint(checkpoints["caption"]).model
    picture = Image.effect_mandelbrot((50, 40), (-2, -1, 1, 1), 20).convert("RGB")
    pixels = torch.from_numpy(task._images._prepare(picture)["pixel_values"])[None]
    assert task.caption(picture).token_ids == tuple(model.generate(pixels)[0]) == (5, 9, 7, 20)


def test_a_split_cache_gives_the_same_texts(exported, checkpoints, tmp_path):
    path = tmp_path / "split.xattn"
    export_checkpoint(checkpoints["caption"], path, cache="split")
    manifest = open_bundle(path).manifest
    assert manifest.cache == "split"
    assert manifest.absent["whole"] == "the cache of the decoder is split; export again with --cache single"
    assert "generator" not in manifest.graphs
    assert open_bundle(exported["caption"]).manifest.cache == "single"
    random = np.random.default_rng(3)
    images = [Image.fromarray(random.integers(0, 256, (40, 50, 3), np.uint8)) for _ in range(5)]
    single, split = (load(bundle, task="caption") for bundle in (exported["caption"], path))
    for beams in (1, 3):
        expected = [caption.token_ids for caption in single.caption_each(images, beams=beams, errors="raise")]
        assert [caption.token_ids for caption in split.caption_each(images, beams=beams, errors="raise")] == expected
        assert split.caption(images[0], beams=beams).token_ids == expected[0]


def test_a_cache_that_cannot_be_split_is_refused(checkpoints, tmp_path):
    with pytest.raises(UserError, match="cache: expected a decoder with a cache to split, found none"):
        export_checkpoint(checkpoints["lstm"], tmp_path / "a.xattn", cache="split")
    with pytest.raises(UserError, match="cache: expected single or split, found 'two'"):
        export_checkpoint(checkpoints["caption"], tmp_path / "a.xattn", cache="two")
    assert not (tmp_path / "a.xattn").exists()


def test_vqa_bundle(exported):
    manifest = open_bundle(exported["lstm"]).manifest
    assert (manifest.task, manifest.attention, manifest.opset) == ("vqa", "decomposed", 18)
    assert manifest.labels == ("circle", "green", "red", "yes", "no")
    assert {case.question for case in manifest.golden.cases} <= {
        "what color is the shape?",
        "what shape is in the image?",
        "is there a red circle?",
    }
    assert verify_bundle(exported["lstm"]).passed


def test_the_report(checkpoints, tmp_path):
    told = []
    report = export_checkpoint(
        checkpoints["transformer"], tmp_path / "t.xattn", progress=lambda what, share: told.append(share)
    ).to_dict()
    assert json.loads(json.dumps(report)) == report
    assert report["standard"] is True
    assert report["parity"]["classifier"]["cases"] == 8
    assert report["parity"]["classifier"]["largest_error"] < 1e-5
    assert 0 < report["golden"]["largest_relative_rms"] < 1e-5
    assert report["graphs"]["classifier"]["operators"]["Attention"] == 3
    assert told == sorted(told)
    assert told[-1] == 1.0
    assert [path.name for path in tmp_path.iterdir()] == ["t.xattn"]


@pytest.mark.slow
@pytest.mark.usefixtures("export_anew")
def test_exporting_again_gives_the_same_bytes(exported, checkpoints, tmp_path, monkeypatch):
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "1700000000")
    export_checkpoint(checkpoints["lstm"], tmp_path / "again.xattn", attention="decomposed", command="pytest")
    one, two = (
        {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
        for folder in (exported["lstm"], tmp_path / "again.xattn")
    )
    manifests = [json.loads(files.pop(Path("manifest.json"))) for files in (one, two)]
    assert one == two
    assert manifests[1]["provenance"].pop("created_utc") == "2023-11-14T22:13:20Z"
    manifests[0]["provenance"].pop("created_utc")
    assert manifests[0] == manifests[1]


def test_a_moment_that_is_none(checkpoints, tmp_path, monkeypatch):
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "soon")
    with pytest.raises(UserError, match="SOURCE_DATE_EPOCH: expected seconds"):
        export_checkpoint(checkpoints["lstm"], tmp_path / "new.xattn")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.usefixtures("export_lstm_once")
def test_pictures_of_ones_own(checkpoints, tmp_path):
    pictures = []
    for number, kind in enumerate(("a.jpg", "b.png")):
        values = np.random.default_rng(number).integers(0, 255, (40, 60, 3), dtype=np.uint8)
        Image.fromarray(values).save(tmp_path / kind)
        pictures.append(tmp_path / kind)
    export_checkpoint(checkpoints["lstm"], tmp_path / "own.xattn", golden_images=pictures)
    manifest = open_bundle(tmp_path / "own.xattn").manifest
    assert [case.image for case in manifest.golden.cases] == ["golden/0.png", "golden/1.png"]
    assert verify_bundle(tmp_path / "own.xattn").passed
    with pytest.raises(ImageError):
        export_checkpoint(checkpoints["lstm"], tmp_path / "bad.xattn", golden_images=[tmp_path / "none.png"])
    assert not (tmp_path / "bad.xattn").exists()


@pytest.mark.usefixtures("export_lstm_once")
def test_a_tokenizer_without_the_usual_words(checkpoints, tmp_path):
    folder = damaged(checkpoints["lstm"], tmp_path / "other")
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    tokenizer["model"]["vocab"] = {
        word if word.startswith("[") else f"w{number}": number for word, number in tokenizer["model"]["vocab"].items()
    }
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    export_checkpoint(folder, tmp_path / "other.xattn", attention="decomposed")
    assert open_bundle(tmp_path / "other.xattn").manifest.golden.cases[0].question == "w4 w5 w6 w7"


def test_bad_sources(checkpoints, tmp_path):
    output = tmp_path / "out.xattn"
    (tmp_path / "empty").mkdir()
    (tmp_path / "text").write_text("1")
    for source, words in (
        (tmp_path / "none", "found nothing"),
        (tmp_path / "empty", "found an empty folder"),
        (tmp_path / "text", "found a file"),
        (
            damaged(checkpoints["lstm"], tmp_path / "a", task="poetry"),
            "task: expected one of caption, vqa, retrieval, sentiment, found 'poetry'",
        ),
        (damaged(checkpoints["lstm"], tmp_path / "b", format_version=9), "format version 9"),
        (damaged(checkpoints["lstm"], tmp_path / "c", name="Bad Name"), "found 'Bad Name'"),
        (damaged(checkpoints["lstm"], tmp_path / "d", image_preprocessing=[{"op": "blur"}]), "image_preprocessing"),
    ):
        with pytest.raises(CheckpointError, match=words) as caught:
            export_checkpoint(source, output)
        assert "\n" not in str(caught.value)
    broken = damaged(checkpoints["lstm"], tmp_path / "e")
    (broken / "config.json").write_text("{")
    with pytest.raises(CheckpointError, match=r"config\.json: expected readable JSON"):
        export_checkpoint(broken, output)
    wrong = damaged(checkpoints["lstm"], tmp_path / "f")
    (wrong / "tokenizer.json").write_text("{}")
    with pytest.raises(CheckpointError, match="an unknown token"):
        export_checkpoint(wrong, output)
    assert not output.exists()


def test_mistakes_are_told_before_the_work(checkpoints, tmp_path, monkeypatch):
    monkeypatch.setattr(exporter, "family_of", None)
    with pytest.raises(UserError, match="expected 23 to 24"):
        export_checkpoint(checkpoints["lstm"], tmp_path / "out.xattn", opset=18)
    (tmp_path / "out.xattn").mkdir()
    with pytest.raises(OutputError, match="already exists"):
        export_checkpoint(checkpoints["lstm"], tmp_path / "out.xattn")


@pytest.mark.parametrize("error", [KeyboardInterrupt, XattnError])
@pytest.mark.usefixtures("export_lstm_once")
def test_a_failure_leaves_nothing(checkpoints, tmp_path, monkeypatch, error):
    def fail(*arguments: object) -> None:
        raise error

    monkeypatch.setattr(exporter, "verify_bundle", fail)
    with pytest.raises(error):
        export_checkpoint(checkpoints["lstm"], tmp_path / "out.xattn")
    assert list(tmp_path.iterdir()) == []
