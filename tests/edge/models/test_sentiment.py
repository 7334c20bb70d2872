"""The sentiment model: what is missing does not matter, whatever it holds."""

from dataclasses import asdict, replace
from itertools import product

import pytest
import torch

from tests.edge.conftest import small_sentiment
from xattn_edge.attention import MECHANISMS
from xattn_edge.encoders import TextEncoderConfig
from xattn_edge.fusion import FUSIONS, FusionConfig
from xattn_edge.models import build_model, config_from_dict

MASKS = (1, 3, 5)


def sample(count=2):
    """Everything that a sample can have."""
    ids = torch.randint(4, 20, (count, 5))
    speech, frames = torch.randn(count, 9, 8), torch.randn(count, 3, 3, 16, 16)
    return [
        ids,
        torch.ones_like(ids),
        speech,
        torch.ones(count, 9, dtype=torch.int64),
        frames,
        torch.ones(count, 3, dtype=torch.int64),
    ]


def without(inputs, missing, filler):
    """The same without some modalities, of which `filler` is left in their place."""
    changed = list(inputs)
    for place in missing:
        changed[place] = torch.zeros_like(changed[place])
        changed[place - 1] = torch.full_like(changed[place - 1], filler)
    return changed


@pytest.mark.parametrize("missing", [(1,), (3,), (5,), (1, 3), (3, 5), (1, 5), (1, 3, 5)])
@torch.inference_mode()
def test_what_a_missing_modality_holds_does_not_matter(missing):
    torch.manual_seed(0)
    model, inputs = build_model(small_sentiment()).eval(), sample()
    found = [model(*without(inputs, missing, filler)) for filler in (1, 7)]
    assert torch.isfinite(found[0]).all()
    torch.testing.assert_close(*found)
    if len(missing) < 3:
        assert (model(*inputs) - found[0]).abs().max() > 1e-6


@pytest.mark.parametrize(("mechanism", "fusion"), [*product(MECHANISMS, ["adaptive"]), ("two_way", "hybrid")])
@torch.inference_mode()
def test_every_mechanism_stands_missing_speech(mechanism, fusion):
    torch.manual_seed(0)
    config = small_sentiment()
    config = replace(config, mechanism=replace(config.mechanism, name=mechanism), fusion=FusionConfig(name=fusion))
    model, inputs = build_model(config).eval(), sample()
    found = [model(*without(inputs, (3,), filler)) for filler in (0, 7)]
    torch.testing.assert_close(*found)


@pytest.mark.parametrize("mechanism", MECHANISMS)
def test_every_mechanism_and_fusion_learns(mechanism):
    """A step of training on samples that lack what they may lack moves the weights, all of which stay finite."""
    for fusion in FUSIONS:
        torch.manual_seed(0)
        config = small_sentiment()
        weights = (2.0, 1.0, 1.0) if fusion == "late_weighted" else None
        config = replace(
            config,
            mechanism=replace(config.mechanism, name=mechanism),
            fusion=FusionConfig(name=fusion, weights=weights),
        )
        model, inputs = build_model(config).train(), sample(3)
        inputs[3][1] = 0
        optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
        losses = []
        for _ in range(4):
            optimizer.zero_grad()
            loss = torch.nn.functional.cross_entropy(model(*inputs), torch.tensor([0, 1, 2]))
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        assert all(torch.isfinite(value).all() for value in model.state_dict().values()), fusion
        assert min(losses[1:]) < losses[0], fusion


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"width": 9}, "mechanism: heads: expected a divisor of the width 9, found 2"),
        ({"fusion": FusionConfig(name="late_weighted", weights=(1.0, 2.0))}, "fusion: weights: expected 3, .*found 2"),
        (
            {"width": 9, "text": TextEncoderConfig(name="lstm", vocabulary=20, max_tokens=12)},
            "heads: expected a divisor of the width 9",
        ),
    ],
)
def test_what_does_not_go_together_is_refused(values, message):
    with pytest.raises(ValueError, match=message):
        replace(small_sentiment(), **values)


def test_the_configuration_survives_json():
    config = small_sentiment()
    assert config_from_dict("sentiment", asdict(config)) == config
    with pytest.raises(ValueError, match="at least 2 labels, found 1 and 1"):
        replace(config, labels=("good",))
