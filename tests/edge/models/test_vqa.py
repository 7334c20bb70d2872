"""Answering by any mechanism, fusion and encoders: every combination that is allowed learns, the others are refused."""

import dataclasses
import json
from itertools import product

import pytest
import torch
from torch.nn import functional as F

from xattn_edge.attention import MECHANISMS, SIMILARITIES, AttentionOptions, MechanismConfig
from xattn_edge.encoders import IMAGE_ENCODERS, TEXT_ENCODERS, ImageEncoderConfig, TextEncoderConfig
from xattn_edge.fusion import FUSIONS, FusionConfig
from xattn_edge.models import (
    Checkpoint,
    VqaConfig,
    build_model,
    config_from_dict,
    load_checkpoint,
    save_checkpoint,
)

WIDTH = 16


def image_config(name="cnn", **values):
    own = {"channels": (4, 8), "blocks": (1,)} if name == "cnn" else {"patch_px": 4}
    return ImageEncoderConfig(**{"name": name, "image_size_px": 16, "layers": 1, "heads": 2} | own | values)


def config_of(mechanism="two_way", fusion="concatenation", image="cnn", text="transformer", **values):
    options = values.pop("options", AttentionOptions(heads=2, similarity="scaled_dot"))
    parts = {
        "image": image_config(image),
        "text": TextEncoderConfig(name=text, vocabulary=30, max_tokens=9, layers=int(text == "transformer"), heads=2),
        "mechanism": MechanismConfig(name=mechanism, options=options, neighbours=3),
        "fusion": FusionConfig(name=fusion, weights=(2.0, 1.0) if fusion == "late_weighted" else None),
        "layers": 1,
        "width": WIDTH,
        "dropout": 0.1,
        "answers": ("yes", "no", "red"),
    }
    return VqaConfig(**parts | values)


def changed(**values):
    return dataclasses.replace(config_of(), **values)


LSTM = TextEncoderConfig(name="lstm", vocabulary=30, max_tokens=9)


def batch():
    generator = torch.Generator().manual_seed(1)
    mask = torch.tensor([[1] * 5, [1, 1, 1, 0, 0], [1, 1, 0, 0, 0], [1] * 5])
    return (
        torch.randn(4, 3, 16, 16, generator=generator),
        torch.randint(1, 30, (4, 5), generator=generator) * mask,
        mask,
        torch.tensor([0, 1, 2, 1]),
    )


def learns(config):
    """Two steps on one batch bring the loss down, and every weight that counts gets a gradient."""
    torch.manual_seed(0)
    model = build_model(config).train()
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    pixels, ids, mask, answers = batch()
    losses = []
    for _ in range(3):
        optimizer.zero_grad()
        loss = F.cross_entropy(model(pixels, ids, mask), answers)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert all(torch.isfinite(value).all() for value in model.state_dict().values())
    assert not [name for name, parameter in model.named_parameters() if parameter.grad is None]
    return losses[-1] < losses[0]


@pytest.mark.parametrize(("mechanism", "fusion"), list(product(MECHANISMS, FUSIONS)))
def test_every_mechanism_and_fusion_with_every_encoder_learns(mechanism, fusion):
    for image, text in product(IMAGE_ENCODERS, TEXT_ENCODERS):
        assert learns(config_of(mechanism, fusion, image, text, dropout=0.0)), (image, text)


@pytest.mark.parametrize(("mechanism", "similarity"), list(product(MECHANISMS, SIMILARITIES)))
def test_every_mechanism_with_every_similarity_and_weighting_can_be_trained(mechanism, similarity):
    for weighting in ("soft", "hard"):
        options = AttentionOptions(heads=4, kv_heads=2, similarity=similarity, weighting=weighting)
        learns(config_of(mechanism, options=options))


@pytest.mark.parametrize("mechanism", MECHANISMS)
def test_mixed_precision(mechanism):
    """In bfloat16 a step of training is finite, and the loss near that of float32."""
    for similarity, weighting in (("cosine", "soft"), ("additive", "soft"), ("scaled_dot", "hard")):
        torch.manual_seed(0)
        options = AttentionOptions(heads=4, kv_heads=2, similarity=similarity, weighting=weighting)
        model = build_model(config_of(mechanism, "dynamic", options=options, dropout=0.0))
        pixels, ids, mask, answers = batch()
        with torch.autocast("cpu", torch.bfloat16):
            loss = F.cross_entropy(model(pixels, ids, mask).float(), answers)
        loss.backward()
        assert all(torch.isfinite(parameter.grad).all() for parameter in model.parameters())
        if weighting == "soft":
            torch.testing.assert_close(F.cross_entropy(model(pixels, ids, mask), answers), loss, rtol=0.03, atol=0)


@pytest.mark.parametrize("mechanism", MECHANISMS)
def test_answers_depend_on_both_modalities_and_not_on_padding(mechanism):
    torch.manual_seed(2)
    model = build_model(config_of(mechanism, layers=2)).eval()
    pixels, ids, mask, _ = batch()
    logits = model(pixels, ids, mask)
    assert not torch.allclose(logits, model(pixels.flip(0), ids, mask), atol=1e-4)
    assert not torch.allclose(logits, model(pixels, ids.flip(0), mask.flip(0)), atol=1e-4)
    torch.testing.assert_close(model(pixels[1:2], ids[1:2, :3], mask[1:2, :3]), logits[1:2])
    image = model.encode_image(pixels)
    torch.testing.assert_close(model.answer(ids, mask, image), logits)


@pytest.mark.parametrize("fusion", ["late_weighted", "adaptive"])
def test_a_checkpoint_of_it_can_be_loaded(tmp_path, fusion):
    config = config_of("hierarchical", fusion)
    assert config_from_dict("vqa", json.loads(json.dumps(dataclasses.asdict(config)))) == config
    torch.manual_seed(3)
    model = build_model(config).eval()
    save_checkpoint(Checkpoint(tmp_path / "new", "vqa", "new", "Apache-2.0", config, model, "{}", (), {}))
    loaded = load_checkpoint(tmp_path / "new")
    assert loaded.config == config
    pixels, ids, mask, _ = batch()
    assert torch.equal(loaded.model(pixels, ids, mask), model(pixels, ids, mask))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: config_of(width=15), "mechanism: heads: expected a divisor of the width 15, found 2"),
        (lambda: changed(image=image_config(heads=3)), "image encoder: heads: expected a divisor of .* 16, found 3"),
        (
            lambda: changed(width=15, mechanism=MechanismConfig(name="self"), image=image_config(heads=1), text=LSTM),
            "width: expected an even one, half for each direction of the lstm, found 15",
        ),
        (lambda: config_of(layers=0), "layers: expected at least 1, found 0"),
        (lambda: config_of(answers=("yes",)), "answers: expected at least 2 to choose among, found 1"),
        (
            lambda: changed(mechanism=MechanismConfig(name="hierarchical", window=3)),
            "window: expected a divisor of a side of 4 positions, which regions must fill, found 3",
        ),
        (
            lambda: changed(fusion=FusionConfig(name="late_weighted", weights=(1.0, 2.0, 3.0))),
            "fusion: weights: expected 2, of text and image, found 3",
        ),
        (lambda: image_config("vit"), "image encoder: expected one of cnn, patches, found 'vit'"),
        (lambda: image_config("patches", channels=(4, 8)), "expected channels and blocks of a cnn, or patch_px"),
        (lambda: image_config("cnn", patch_px=4), "expected channels and blocks of a cnn, or patch_px"),
        (lambda: image_config("patches", patch_px=5), "patch_px: expected a divisor of 16 px, found 5"),
        (lambda: image_config("cnn", image_size_px=18), "18 is not a multiple of the stride 4"),
        (
            lambda: TextEncoderConfig(name="lstm", vocabulary=9, max_tokens=5, layers=2),
            "expected no layers of self-attention in an lstm, found 2",
        ),
        (lambda: TextEncoderConfig(name="gru", vocabulary=9, max_tokens=5), "expected one of lstm, .*found 'gru'"),
    ],
)
def test_what_does_not_go_together_is_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()
