"""The retrieval model: embeddings of one space, and a match that padding does not change."""

from dataclasses import asdict, replace

import pytest
import torch

from tests.edge.conftest import small_retrieval
from xattn_edge.attention import MechanismConfig
from xattn_edge.encoders import TextEncoderConfig
from xattn_edge.models import build_model, config_from_dict


@pytest.fixture
def model():
    torch.manual_seed(0)
    return build_model(small_retrieval()).eval()


def batch(count=3):
    pixels = torch.randn(count, 3, 16, 16)
    ids = torch.randint(4, 20, (count, 5))
    return pixels, ids, torch.ones_like(ids)


@torch.inference_mode()
def test_embeddings_have_length_1_and_padding_changes_nothing(model):
    pixels, ids, mask = batch()
    image, text = model.encode_image(pixels), model.encode_text(ids, mask)
    torch.testing.assert_close(model.embed_image(image).norm(dim=-1), torch.ones(3))
    padded = model.encode_text(torch.cat([ids, ids], 1), torch.cat([mask, torch.zeros_like(mask)], 1))
    torch.testing.assert_close(model.embed_text(padded), model.embed_text(text))
    torch.testing.assert_close(model.match(padded, image), model.match(text, image))


@torch.inference_mode()
def test_a_match_depends_on_both_sides(model):
    pixels, ids, mask = batch()
    image, text = model.encode_image(pixels), model.encode_text(ids, mask)
    other = model.encode_image(pixels.flip(0))
    assert (model.match(text, image) - model.match(text, other))[::2].abs().min() > 1e-6


def test_without_reranking_there_is_no_match():
    model = build_model(replace(small_retrieval(), rerank_layers=0))
    pixels, ids, mask = batch()
    with pytest.raises(ValueError, match="expected at least 1 to match, found 0"):
        model.match(model.encode_text(ids, mask), model.encode_image(pixels))


def test_the_configuration_survives_json():
    config = small_retrieval()
    assert config_from_dict("retrieval", asdict(config)) == config
    with pytest.raises(ValueError, match="heads: expected a divisor of the width 8, found 3"):
        replace(config, mechanism=MechanismConfig(name="two_way", options=replace(config.mechanism.options, heads=3)))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"mechanism": MechanismConfig(name="hierarchical", window=3)}, "expected a divisor of a side of 4 positions"),
        (
            {
                "width": 9,
                "mechanism": MechanismConfig(name="self"),
                "image": replace(small_retrieval().image, heads=1),
                "text": TextEncoderConfig(name="lstm", vocabulary=20, max_tokens=12),
            },
            "width: expected an even one, half for each direction of the lstm, found 9",
        ),
    ],
)
def test_what_does_not_go_together_is_refused(values, message):
    with pytest.raises(ValueError, match=message):
        replace(small_retrieval(), **values)
