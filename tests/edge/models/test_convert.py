"""Checkpoints of format 1 compute in format 2 what they computed in format 1.

`format_1` holds small checkpoints of every model of that format, with random weights, and `logits.json`: what the code
that wrote them computed from the inputs below, of these checkpoints and of the four in `checkpoints/` (of each row the
first 16 logits).
"""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from xattn_edge.models import load_checkpoint, save_checkpoint
from xattn_edge.models.checkpoint import FORMAT_VERSION

HERE = Path(__file__).parent / "format_1"
SHIPPED = Path(__file__).parents[3] / "checkpoints"
LOGITS = json.loads((HERE / "logits.json").read_text())
SMALL, LARGE = LOGITS["small"], LOGITS["checkpoints"]
MASK = torch.tensor([[1] * 5, [1, 1, 1, 0, 0]])


def numbers(seed, *shape):
    return torch.from_numpy(np.random.default_rng(seed).standard_normal(shape, dtype=np.float32))


def token_ids(limit):
    return torch.from_numpy(np.random.default_rng(2).integers(4, limit, (2, 5)))


def images(config, *shape):
    return numbers(1, *shape, 3, config.image_size_px, config.image_size_px)


def vqa(model):
    return model(images(model.config.image, 2), token_ids(model.config.text.vocabulary) * MASK, MASK)


def caption(model):
    return model(images(model.config.image, 2), token_ids(model.config.vocabulary))[:, -1]


def retrieval(model):
    pixels, ids = images(model.config.image, 2), token_ids(model.config.text.vocabulary) * MASK
    match = model.match(model.encode_text(ids, MASK), model.encode_image(pixels))
    return torch.cat([model(pixels, ids, MASK), match], 1)


def sentiment(model):
    config = model.config
    return model(
        token_ids(config.text.vocabulary) * MASK,
        MASK,
        numbers(3, 2, 9, config.speech.bands),
        torch.ones(2, 9, dtype=torch.int64),
        images(config.frames.image, 2, 2),
        torch.tensor([[1, 1], [1, 0]]),
    )


COMPUTE = {"vqa": vqa, "caption": caption, "retrieval": retrieval, "sentiment": sentiment}


@torch.inference_mode()
def logits(checkpoint):
    return COMPUTE[checkpoint.task](checkpoint.model)


def compare(found, expected):
    expected = torch.tensor(expected)
    torch.testing.assert_close(found[:, : expected.shape[1]], expected, atol=2e-5, rtol=1e-5)


@pytest.mark.parametrize("name", SMALL)
def test_every_older_model_computes_the_same(name):
    compare(logits(load_checkpoint(HERE / name)), SMALL[name])


@pytest.mark.parametrize("name", LARGE)
def test_our_own_checkpoints_compute_the_same(name):
    compare(logits(load_checkpoint(SHIPPED / name)), LARGE[name])


@pytest.mark.parametrize("name", SMALL)
def test_it_is_saved_in_the_new_form(name, tmp_path):
    older = load_checkpoint(HERE / name)
    save_checkpoint(replace(older, path=tmp_path / "new"))
    assert json.loads((tmp_path / "new" / "config.json").read_text())["format_version"] == FORMAT_VERSION
    again = load_checkpoint(tmp_path / "new")
    assert again.config == older.config
    assert torch.equal(logits(again), logits(older))
