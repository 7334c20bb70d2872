"""Checkpoints: what is saved comes back, what is damaged is refused in one line."""

import json

import pytest
import torch

from xattn_edge.models import CaptionModel, Checkpoint, VqaModel, load_checkpoint, save_checkpoint
from xattn_runtime.errors import CheckpointError


@pytest.fixture
def saved(tmp_path, caption_config, caption_model):
    checkpoint = Checkpoint(
        path=tmp_path / "checkpoint",
        task="caption",
        name="tiny",
        license="Apache-2.0",
        config=caption_config,
        model=caption_model,
        tokenizer_json="{}",
        image_preprocessing=({"op": "flatten", "background": [255, 255, 255]},),
        recipe={"seed": 3},
    )
    save_checkpoint(checkpoint)
    return checkpoint


def test_a_checkpoint_comes_back(saved):
    again = load_checkpoint(saved.path)
    assert again.config == saved.config
    assert again.recipe == {"seed": 3}
    assert not again.model.training
    for name, tensor in saved.model.state_dict().items():
        assert torch.equal(again.model.state_dict()[name], tensor)


def damage_config(folder, **change):
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda folder: (folder / "config.json").unlink(), "not a checkpoint: it has no config.json"),
        (lambda folder: (folder / "config.json").write_text("{"), "not JSON"),
        (lambda folder: (folder / "config.json").write_text("[]"), "expected a JSON object, found list"),
        (lambda folder: damage_config(folder, format_version=9), "format version 9, expected 2 or 1"),
        (lambda folder: damage_config(folder, task="dance"), "'dance' is not one of vqa, caption"),
        (lambda folder: damage_config(folder, model={}), "missing"),
        (lambda folder: (folder / "model.safetensors").unlink(), "model.safetensors"),
        (lambda folder: (folder / "model.safetensors").write_bytes(b"\0" * 40), "damaged"),
        (lambda folder: (folder / "tokenizer.json").unlink(), "tokenizer.json is missing"),
    ],
)
def test_a_damaged_checkpoint_is_one_clear_line(saved, damage, message):
    damage(saved.path)
    with pytest.raises(CheckpointError, match=message) as caught:
        load_checkpoint(saved.path)
    assert "\n" not in str(caught.value)
    assert str(saved.path) in str(caught.value)


def test_weights_of_another_model_are_refused(saved):
    config = json.loads((saved.path / "config.json").read_text())
    config["model"]["layers"] = 3
    (saved.path / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match="damaged or of another model"):
        load_checkpoint(saved.path)


def test_a_model_of_another_task_is_refused(saved):
    assert load_checkpoint(saved.path, CaptionModel).config == saved.config
    with pytest.raises(CheckpointError, match="expected a checkpoint of vqa, found one of caption"):
        load_checkpoint(saved.path, VqaModel)
