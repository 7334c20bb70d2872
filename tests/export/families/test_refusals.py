"""Folders that no family reads: one line that says what it is, what comes nearest, and what to do."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from xattn_export.families.table import FAMILIES, family_of
from xattn_runtime.errors import CheckpointError

LISTED = "; docs/families.md lists what can be exported, docs/adding-a-family.md says how to add a family"
UNKNOWN: list[tuple[dict[str, Any], str]] = [
    (
        {"model_type": "vilt", "architectures": ["ViltForMaskedLM"]},
        "expected a class that can be exported (the nearest that can: ViLT VQA, ViltForQuestionAnswering), found "
        f"'ViltForMaskedLM'{LISTED}",
    ),
    (
        {"model_type": "instructblip", "architectures": ["InstructBlipForConditionalGeneration"]},
        "(the nearest that can: BLIP captioning, BlipForConditionalGeneration), found 'InstructBlip",
    ),
    ({"model_type": "siglip2", "architectures": ["Siglip2Model"]}, "(the nearest that can: SigLIP, SiglipModel)"),
    ({"model_type": "chinese_clip"}, "CLIP, CLIPModel), found none, and model_type 'chinese_clip'"),
    ({"architectures": ["Qwen2_5_VLForConditionalGeneration"]}, "can be exported, found 'Qwen2_5_VLFor"),
    ({"model_type": 3, "architectures": {}}, "can be exported, found none, and model_type 3"),
    ({}, "can be exported, found none, and model_type None"),
    (
        {"model_type": "blip"},
        'expected the class of the model, found none; write "architectures": ["BlipForConditionalGeneration"] or '
        '["BlipForQuestionAnswering"] or ["BlipForImageTextRetrieval"], whichever the weights are of',
    ),
]
TOLD_BY_TYPE = {
    "vision-encoder-decoder": "VisionEncoderDecoder",
    "blip-2": "BLIP-2",
    "clip": "CLIP",
    "florence2": "Florence-2",
    "git": "GIT",
    "idefics3": "Idefics3, SmolVLM",
    "lxmert": "LXMERT VQA",
    "siglip": "SigLIP",
    "smolvlm": "Idefics3, SmolVLM",
    "vilt": "ViLT VQA",
}


def _folder(path: Path, config: object) -> Path:
    (path / "config.json").write_text(json.dumps(config), encoding="utf-8")
    return path


@pytest.mark.parametrize(("config", "message"), UNKNOWN, ids=[message[-40:] for _, message in UNKNOWN])
def test_an_unknown_architecture_is_told_the_nearest(config: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError) as caught:
        family_of(_folder(tmp_path, config))
    assert str(caught.value).startswith(f"{tmp_path / 'config.json'}: architectures: ")
    assert message in str(caught.value)
    assert len(str(caught.value)) - len(str(tmp_path)) < 300


@pytest.mark.parametrize(
    "stated", [{}, {"architectures": None}, {"architectures": []}], ids=["missing", "null", "none"]
)
@pytest.mark.parametrize("model_type", TOLD_BY_TYPE)
def test_the_type_says_the_class_where_none_is_named(model_type: str, stated: dict[str, Any], tmp_path: Path) -> None:
    assert family_of(_folder(tmp_path, {"model_type": model_type, **stated})).name == TOLD_BY_TYPE[model_type]


def test_a_class_that_is_named_counts_more_than_the_type(tmp_path: Path) -> None:
    config = {"model_type": "clip", "architectures": ["BlipForQuestionAnswering"]}
    assert family_of(_folder(tmp_path, config)).name == "BLIP VQA"
    assert family_of(_folder(tmp_path, {"architectures": "GitForCausalLM"})).name == "GIT"
    with pytest.raises(CheckpointError):
        family_of(_folder(tmp_path, {"model_type": "clip", "architectures": ["CLIPVisionModel"]}))


def test_every_family_of_transformers_states_its_classes() -> None:
    assert {family.name for family in FAMILIES if not family.classes} == {
        f"xattn-edge {task}" for task in ("caption", "vqa", "retrieval", "sentiment")
    }


WITHOUT_CONFIG = {
    "nothing": ((), "found an empty folder; name the folder that"),
    "a pipeline": (("model_index.json",), "found a pipeline of Diffusers; name the folder of one model in it"),
    "a GGUF": (("model-q4.gguf",), "found a GGUF model of llama.cpp; name the folder of the checkpoint"),
    "a Trainer's folder": (
        ("checkpoint-100/config.json", "checkpoint-50/config.json", "runs/log"),
        "found a folder of checkpoints: checkpoint-100, checkpoint-50; name one of them",
    ),
    "weights alone": (("model.safetensors",), "found a folder without config.json; name the folder that"),
}


@pytest.mark.parametrize("kind", WITHOUT_CONFIG)
def test_a_folder_without_config_is_named_as_what_it_is(kind: str, tmp_path: Path) -> None:
    files, message = WITHOUT_CONFIG[kind]
    for name in files:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("{}", encoding="utf-8")
    with pytest.raises(CheckpointError) as caught:
        family_of(tmp_path)
    assert str(caught.value).startswith(f"{tmp_path}: expected the folder of a checkpoint, {message}")


@pytest.mark.parametrize(
    "name", ["config.json", "model.safetensors", "pytorch_model.bin", "tokenizer.json", "vocab.txt"]
)
@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            "version https://git-lfs.github.com/spec/v1\noid sha256:ab\nsize 9\n",
            "a Git LFS pointer in place of the file;",
        ),
        ("/annex/objects/SHA256E-s9--ab", "a git-annex pointer in place of the file; run `git annex get`"),
        ("<!DOCTYPE html>\n<html><title>Sign in</title>", "a web page (HTML) in place of the file"),
    ],
    ids=["LFS", "annex", "page"],
)
def test_a_pointer_in_place_of_a_file_is_named(name: str, content: str, message: str, tmp_path: Path) -> None:
    folder = _folder(tmp_path, {"architectures": ["BlipForConditionalGeneration"], "model_type": "blip"})
    (folder / name).write_text(content, encoding="utf-8")
    with pytest.raises(CheckpointError) as caught:
        family_of(folder)
    assert str(caught.value).startswith(f"{folder / name}: expected a file of a checkpoint, found {message}")


def test_a_link_of_git_annex_is_named(tmp_path: Path) -> None:
    folder = _folder(tmp_path, {"architectures": ["BlipForConditionalGeneration"], "model_type": "blip"})
    (folder / "model.safetensors").symlink_to("../../.git/annex/objects/a/b/SHA256E-s9--ab")
    with pytest.raises(CheckpointError, match=r"model.safetensors: expected a file of a checkpoint, found a git-annex"):
        family_of(folder)
