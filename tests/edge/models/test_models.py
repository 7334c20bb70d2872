"""The two models: caching, padding and dependence on both modalities."""

import dataclasses
import json

import pytest
import torch

from xattn_edge.attention import MechanismConfig
from xattn_edge.models import VqaModel, config_from_dict


def pixels(batch, seed=0):
    return torch.randn(batch, 3, 32, 32, generator=torch.Generator().manual_seed(seed))


def test_decoding_with_a_cache_is_decoding_without(caption_model):
    tokens = torch.randint(0, 30, (2, 7))
    whole = caption_model(pixels(2), tokens)
    cross = caption_model.encode_image(pixels(2))
    past = caption_model.empty_cache(2)
    pieces = []
    for part in (tokens[:, :1], tokens[:, 1:4], tokens[:, 4:]):
        logits, past = caption_model.decode(part, past, cross)
        pieces.append(logits)
    torch.testing.assert_close(torch.cat(pieces, 1), whole)
    assert past[0].key.shape[2] == 7


def test_captions_depend_on_the_picture_and_not_on_what_follows(caption_model):
    tokens = torch.randint(0, 30, (1, 6))
    logits = caption_model(pixels(1), tokens)
    assert not torch.allclose(logits, caption_model(pixels(1, seed=1), tokens), atol=1e-4)
    changed = tokens.clone()
    changed[0, -1] = (changed[0, -1] + 1) % 30
    torch.testing.assert_close(caption_model(pixels(1), changed)[:, :-1], logits[:, :-1])


def test_greedy_generation_takes_the_likeliest_token_until_the_end(caption_model, caption_config):
    captions = caption_model.generate(pixels(3))
    for row, caption in enumerate(captions):
        ids = [caption_config.start_token_id]
        while len(ids) <= caption_config.max_tokens:
            best = caption_model(pixels(3)[row : row + 1], torch.tensor([ids]))[0, -1].argmax().item()
            if best == caption_config.end_token_id:
                break
            ids.append(best)
            if len(ids) > caption_config.max_tokens:
                break
        assert caption == ids[1:]


def test_padding_does_not_change_an_answer(vqa_model):
    cross = vqa_model.encode_image(pixels(1))
    short = torch.tensor([[5, 6, 7]])
    padded = torch.tensor([[5, 6, 7, 0, 0]])
    torch.testing.assert_close(
        vqa_model.answer(padded, torch.tensor([[1, 1, 1, 0, 0]]), cross),
        vqa_model.answer(short, torch.ones_like(short), cross),
    )


def test_answers_depend_on_both_modalities(vqa_model):
    question = torch.tensor([[5, 6, 7]])
    mask = torch.ones_like(question)
    answer = vqa_model(pixels(1), question, mask)
    assert not torch.allclose(answer, vqa_model(pixels(1, seed=1), question, mask), atol=1e-4)
    assert not torch.allclose(answer, vqa_model(pixels(1), question + 1, mask), atol=1e-4)


def test_a_configuration_survives_json(vqa_config, caption_config):
    for task, config in (("vqa", vqa_config), ("caption", caption_config)):
        assert config_from_dict(task, json.loads(json.dumps(dataclasses.asdict(config)))) == config


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"width": 15}, "mechanism: heads: expected a divisor of the width 15, found 2"),
        ({"colour": 1}, r"unknown \['colour'\]"),
        ({"mechanism": {"name": "text_to_image"}}, r"missing \['hops', .*'options'"),
        (
            {"mechanism": dataclasses.asdict(MechanismConfig(name="image_to_text"))},
            "fusion: expected one with image_to_text, whose text reads nothing, found none",
        ),
    ],
)
def test_impossible_configurations_are_refused(vqa_config, change, message):
    with pytest.raises(ValueError, match=message):
        config_from_dict("vqa", dataclasses.asdict(vqa_config) | change)


def test_cross_keys_are_of_the_positions_of_the_feature_map(caption_model, vqa_model):
    for key in (caption_model.encode_image(pixels(2))[0].key, vqa_model.encode_image(pixels(2))[0]):
        assert key.shape == (2, 2, 64, 8)


@pytest.mark.parametrize("image_norm", [False, True])
def test_keys_and_values_once_an_image_answer_as_image_tokens_do(vqa_config, image_norm):
    """The text alone decides; only image tokens that no layer changes are projected once."""
    torch.manual_seed(5)
    config = dataclasses.replace(vqa_config, image_norm=image_norm)
    model = VqaModel(config).eval()
    assert config.reads_once is not image_norm
    assert len(model.encode_image(pixels(1))) == (2 if image_norm else 2 * config.layers)
    ids, mask = torch.tensor([[5, 6, 7, 8]]), torch.ones(1, 4, dtype=torch.int64)
    text, image = model.text_encoder(ids, mask), model.image_encoder(pixels(1))
    for layer in model.layers:
        text, image = layer(text, image)
    expected = model.head(model.text_norm(text.features).mean(1))
    torch.testing.assert_close(model(pixels(1), ids, mask), expected)
