"""Connectors beside those of Transformers' vision-language models, in torch, each alone."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import Gemma3Config, Idefics3Config, InternVLConfig, LlavaConfig, PaliGemmaConfig, SmolVLMConfig
from transformers.models.gemma3.modeling_gemma3 import Gemma3MultiModalProjector
from transformers.models.idefics3.modeling_idefics3 import Idefics3Connector
from transformers.models.internvl.modeling_internvl import InternVLModel, InternVLMultiModalProjector
from transformers.models.llava.modeling_llava import LlavaMultiModalProjector
from transformers.models.paligemma.modeling_paligemma import PaliGemmaMultiModalProjector

from tests.export.families.conftest import randomize
from xattn_export.families.layers.connectors.table import CONNECTORS
from xattn_runtime.errors import CheckpointError

WIDTH, PATCHES = 12, 6
VISION = {"hidden_size": WIDTH, "image_size": 48, "patch_size": 8}
TEXT = {"hidden_size": 20, "vocab_size": 30, "num_attention_heads": 2, "num_key_value_heads": 2, "head_dim": 10}


def _tokens(count: int = PATCHES**2) -> torch.Tensor:
    return torch.randn(2, count, WIDTH, generator=torch.Generator().manual_seed(5))


def _model(config: Any, **parts: Any) -> Any:
    """A stand-in for a model of which only the connector is needed."""
    for part in parts.values():
        part.requires_grad_(False)
        randomize(part)
    return SimpleNamespace(config=config, **parts)


def _compare(model: Any, tokens: torch.Tensor, expected: torch.Tensor) -> None:
    connector = CONNECTORS[model.config.model_type]
    assert expected.std() > 0.1
    assert torch.allclose(connector.build(model, PATCHES)(tokens), expected, atol=1e-5)
    assert connector.count(model.config, PATCHES) == expected.shape[1]


@pytest.mark.parametrize("factor", [1, 2, 3])
@pytest.mark.parametrize("config_class", [Idefics3Config, SmolVLMConfig])
def test_pixel_shuffle(config_class: Any, factor: int) -> None:
    config = config_class(vision_config=VISION, text_config={"model_type": "llama", **TEXT}, scale_factor=factor)
    model = _model(config, connector=Idefics3Connector(config))
    _compare(model, _tokens(), model.connector(_tokens()))


@pytest.mark.parametrize("ratio", [0.5, 1 / 3])
def test_pixel_shuffle_and_mlp(ratio: float) -> None:
    config = InternVLConfig(
        vision_config=VISION | {"image_size": [48, 48], "patch_size": [8, 8]},
        text_config={"model_type": "qwen2", **TEXT},
        downsample_ratio=0.5,
    )
    model = _model(config, multi_modal_projector=InternVLMultiModalProjector(config))
    if ratio == 0.5:  # Transformers divides by others in floating point
        grid = InternVLModel.pixel_shuffle(SimpleNamespace(), _tokens().view(2, PATCHES, PATCHES, WIDTH), ratio)
        _compare(model, _tokens(), model.multi_modal_projector(grid.flatten(1, 2)))
    else:
        config.downsample_ratio = ratio
        assert CONNECTORS["internvl"].count(config, PATCHES) == 4


@pytest.mark.parametrize("strategy", ["default", "full"])
@pytest.mark.parametrize("settings", [{}, {"projector_hidden_act": "relu", "multimodal_projector_bias": False}])
def test_mlp(strategy: str, settings: dict[str, Any]) -> None:
    config = LlavaConfig(
        vision_config={"model_type": "clip_vision_model", **VISION},
        text_config={"model_type": "llama", **TEXT},
        vision_feature_select_strategy=strategy,
        **settings,
    )
    model = _model(config, multi_modal_projector=LlavaMultiModalProjector(config))
    tokens = _tokens(PATCHES**2 + (strategy == "full"))
    _compare(model, tokens, model.multi_modal_projector(tokens))


def test_linear() -> None:
    vision = {"model_type": "siglip_vision_model", "projection_dim": 20, **VISION}
    config = PaliGemmaConfig(vision_config=vision, text_config={"model_type": "gemma2", **TEXT})
    model = _model(config, multi_modal_projector=PaliGemmaMultiModalProjector(config))
    _compare(model, _tokens(), model.multi_modal_projector(_tokens()))


@pytest.mark.parametrize("count", [4, 9, 36])
def test_means_of_squares(count: int) -> None:
    vision = {"model_type": "siglip_vision_model", **VISION}
    config = Gemma3Config(vision_config=vision, text_config=TEXT, mm_tokens_per_image=count)
    model = _model(config, multi_modal_projector=Gemma3MultiModalProjector(config))
    _compare(model, _tokens(), model.multi_modal_projector(_tokens()))


@pytest.mark.parametrize(
    ("model_type", "settings", "message"),
    [
        ("idefics3", {"scale_factor": 4}, "scale_factor: expected a divisor of the 6 patches across an image, found 4"),
        ("internvl", {"downsample_ratio": 0.25}, "downsample_ratio: expected a divisor of the 6 .*, found 0.25"),
        ("gemma3", {"mm_tokens_per_image": 16}, "mm_tokens_per_image: expected the square of a divisor of 6 .* 16"),
        ("gemma3", {"mm_tokens_per_image": 12}, "mm_tokens_per_image: .* found 12"),
    ],
)
def test_squares_that_do_not_fit_are_refused(model_type: str, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(CheckpointError, match=f"config.json: {message}"):
        CONNECTORS[model_type].tokens(Path("config.json"), SimpleNamespace(**settings), PATCHES)
