"""The two models: caching, padding and dependence on both modalities."""

import pytest
import torch

from xattn_edge.models import CaptionConfig, VqaConfig, build_model, config_from_dict


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


@pytest.mark.parametrize("task", ["vqa", "caption"])
def test_a_configuration_survives_json(task, request):
    import dataclasses
    import json

    config = request.getfixturevalue("caption_config") if task == "caption" else VqaConfig(**_VQA)
    again = config_from_dict(task, json.loads(json.dumps(dataclasses.asdict(config))))
    assert again == config


_VQA = {
    "image_size_px": 32,
    "channels": (8, 12),
    "blocks": (1,),
    "image_layers": 0,
    "width": 16,
    "heads": 2,
    "dropout": 0.0,
    "vocabulary": 9,
    "max_tokens": 5,
    "text_encoder": "lstm",
    "text_layers": 1,
    "cross_layers": 1,
    "answers": ("yes",),
}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"heads": 3}, "3 do not divide width 16"),
        ({"image_size_px": 30}, "30 is not a multiple of the stride 4"),
        ({"blocks": (1, 1)}, "expected 1 numbers, found 2"),
        ({"text_encoder": "gru"}, "'gru' is not one of lstm, transformer"),
        ({"colour": 1}, r"unknown \['colour'\]"),
    ],
)
def test_impossible_configurations_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        config_from_dict("vqa", _VQA | change)


def test_image_tokens_are_the_positions_of_the_feature_map(caption_config):
    assert isinstance(caption_config, CaptionConfig)
    cross = build_model(caption_config).encode_image(pixels(2))
    assert cross[0].key.shape == (2, 2, caption_config.image_tokens, 8)
    assert caption_config.image_tokens == 64
