"""Decoders that are told their positions, on three axes, and what DeepStack adds, beside Qwen's text models."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import DynamicCache, Qwen2_5_VLTextConfig, Qwen2VLTextConfig, Qwen3VLTextConfig
from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import Qwen2_5_VLTextModel
from transformers.models.qwen2_vl.modeling_qwen2_vl import Qwen2VLTextModel
from transformers.models.qwen3_vl.modeling_qwen3_vl import Qwen3VLTextModel

from tests.export.families.conftest import randomize
from tests.export.families.layers.language.language_models import SIZES, first_cache
from xattn_export.families.layers.language.decoder import LanguageDecoder
from xattn_export.families.layers.language.table import check_language_model, language_decoder

LENGTH, BEFORE = 14, 9
SECTIONS = [2, 1, 1]


def _models(config_class: Any, model_class: Any, **settings: Any) -> tuple[Any, LanguageDecoder]:
    rope = {"rope_type": "default", "rope_theta": 100.0, "mrope_section": SECTIONS}
    config = config_class(**{**SIZES, "num_attention_heads": 4, "rope_parameters": rope, **settings})
    config._attn_implementation = "eager"
    model = model_class(config).eval().requires_grad_(False)
    randomize(model)
    check_language_model(Path("config.json"), config)
    return model, language_decoder(model)


@pytest.mark.usefixtures("standard_attention")
@pytest.mark.parametrize(
    ("config_class", "model_class", "settings"),
    [
        (Qwen2VLTextConfig, Qwen2VLTextModel, {}),
        (
            Qwen2VLTextConfig,
            Qwen2VLTextModel,
            {"use_sliding_window": True, "sliding_window": 4, "max_window_layers": 1},
        ),
        (Qwen2_5_VLTextConfig, Qwen2_5_VLTextModel, {}),
        (Qwen3VLTextConfig, Qwen3VLTextModel, {"head_dim": 8}),
    ],
)
def test_positions_of_three_axes(config_class: Any, model_class: Any, settings: dict[str, Any]) -> None:
    model, decoder = _models(config_class, model_class, **settings)
    generator = torch.Generator().manual_seed(2)
    tokens = torch.randn(2, LENGTH, SIZES["hidden_size"], generator=generator)
    places = torch.randint(0, 30, (3, 2, LENGTH), generator=generator)
    cache, past = DynamicCache(), first_cache(decoder, model.config, 2)
    for part in (slice(0, BEFORE), slice(BEFORE, LENGTH)):
        expected = model(inputs_embeds=tokens[:, part], position_ids=places[..., part], past_key_values=cache)
        found, present = decoder.step(tokens[:, part], past, position_ids=places[..., part])
        past = list(present)
        assert expected.last_hidden_state.std() > 0.5
        assert torch.allclose(found, expected.last_hidden_state, atol=2e-5)


@pytest.mark.usefixtures("standard_attention")
def test_what_is_added_after_the_first_layers() -> None:
    model, decoder = _models(Qwen3VLTextConfig, Qwen3VLTextModel, head_dim=8, num_hidden_layers=3)
    generator = torch.Generator().manual_seed(3)
    tokens = torch.randn(2, LENGTH, SIZES["hidden_size"], generator=generator)
    is_image = torch.rand(2, LENGTH, generator=generator) > 0.6
    features = [torch.randn(int(is_image.sum()), SIZES["hidden_size"], generator=generator) for _ in range(2)]
    added: Sequence[Tensor] = [torch.zeros_like(tokens).masked_scatter(is_image[..., None], each) for each in features]
    expected = model(inputs_embeds=tokens, visual_pos_masks=is_image, deepstack_visual_embeds=features)
    places = torch.arange(LENGTH).expand(3, 2, -1)
    found, _ = decoder.step(tokens, first_cache(decoder, model.config, 2), position_ids=places, added=added)
    assert torch.allclose(found, expected.last_hidden_state, atol=2e-5)
