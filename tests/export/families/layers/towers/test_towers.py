"""Towers beside Transformers' vision models, in torch: each of the table, and every choice of tokens."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import (
    Blip2VisionConfig,
    Blip2VisionModel,
    CLIPVisionConfig,
    CLIPVisionModel,
    Idefics3VisionConfig,
    InternVLVisionConfig,
    InternVLVisionModel,
    SiglipVisionConfig,
    SiglipVisionModel,
)
from transformers.models.idefics3.modeling_idefics3 import Idefics3VisionTransformer
from transformers.models.smolvlm.configuration_smolvlm import SmolVLMVisionConfig
from transformers.models.smolvlm.modeling_smolvlm import SmolVLMVisionTransformer

from tests.export.families.conftest import randomize
from xattn_export.families.layers.towers.table import TOWERS, check_tower, patches_across, tower_of
from xattn_export.families.layers.towers.tower import Features
from xattn_runtime.errors import CheckpointError

SIDE_PX = 24
SIZES = {
    "hidden_size": 24,
    "intermediate_size": 40,
    "num_hidden_layers": 3,
    "num_attention_heads": 3,
    "image_size": SIDE_PX,
    "patch_size": 8,
}
INTERN = SIZES | {"image_size": [SIDE_PX] * 2, "patch_size": [8, 8], "layer_scale_init_value": 0.5}
# name → class, its configuration, sizes; the second Idefics3 has more positions than its images have patches.
TINY: dict[str, tuple[Any, Any, dict[str, Any]]] = {
    "blip-2": (Blip2VisionModel, Blip2VisionConfig, SIZES | {"qkv_bias": True}),
    "clip": (CLIPVisionModel, CLIPVisionConfig, SIZES | {"hidden_act": "quick_gelu"}),
    "idefics3": (Idefics3VisionTransformer, Idefics3VisionConfig, SIZES),
    "smolvlm": (SmolVLMVisionTransformer, SmolVLMVisionConfig, SIZES | {"image_size": 40}),
    "internvit": (InternVLVisionModel, InternVLVisionConfig, INTERN | {"attention_bias": True}),
    "internvit 6B": (
        InternVLVisionModel,
        InternVLVisionConfig,
        INTERN | {"norm_type": "rms_norm", "use_qk_norm": True, "use_mean_pooling": False},
    ),
    "siglip": (SiglipVisionModel, SiglipVisionConfig, SIZES | {"vision_use_head": False}),
}
# Whose tokens can be taken from within.
WITHIN = ("clip", "internvit", "siglip")


def _tiny(name: str) -> Any:
    model_class, config_class, sizes = TINY[name]
    model = model_class._from_config(config_class(**sizes), attn_implementation="eager")
    randomize(model)
    return model.eval().requires_grad_(False)


def _pixels() -> Tensor:
    return torch.rand(2, 3, SIDE_PX, SIDE_PX, generator=torch.Generator().manual_seed(3)) * 2 - 1


@pytest.mark.parametrize("name", TINY)
def test_tokens_are_those_of_transformers(name: str) -> None:
    model = _tiny(name)
    expected = model(_pixels()).last_hidden_state
    assert expected.std() > 0.3
    assert torch.allclose(tower_of(model, SIDE_PX)(_pixels()), expected, atol=1e-5)


@pytest.mark.parametrize("first", [True, False])
@pytest.mark.parametrize("layers", [(-2,), (-1,), (0,), (1, 3)])
@pytest.mark.parametrize("name", WITHIN)
def test_tokens_from_within(name: str, layers: tuple[int, ...], first: bool) -> None:
    model = _tiny(name)
    states = model(_pixels(), output_hidden_states=True).hidden_states
    expected = torch.cat([states[layer] for layer in layers], -1)[:, 0 if first else 1 :]
    tower = tower_of(model, SIDE_PX, Features(layers, first))
    assert torch.allclose(tower(_pixels()), expected, atol=1e-5)
    assert len(tuple(tower.get_submodule("layers").children())) == max(layer % 4 for layer in layers)


def test_every_tower_of_the_table_is_compared() -> None:
    assert {config_class.model_type for _, config_class, _ in TINY.values()} == set(TOWERS)


@pytest.mark.parametrize("name", ["internvit", "siglip"])
def test_patches_are_counted_along_a_side(name: str) -> None:
    assert patches_across(_tiny(name).config, SIDE_PX) == 3


@pytest.mark.parametrize(
    ("config", "size_px", "message"),
    [
        (SiglipVisionConfig(**SIZES), (32, 32), r"image_size: expected 32 × 32 pixels, as the .*, found 24"),
        (InternVLVisionConfig(**INTERN), (32, 32), r"image_size: expected 32 × 32 pixels, .* found \[24, 24\]"),
        (Idefics3VisionConfig(**SIZES), (24, 32), r"makes square images, found one of 24 × 32 pixels"),
        (Idefics3VisionConfig(**SIZES | {"patch_size": (8, 4)}), (24, 24), r"patch_size: expected .*, found \(8, 4\)"),
        (Idefics3VisionConfig(**SIZES | {"patch_size": 32}), (24, 24), r"patch_size: expected .*, found 32"),
    ],
)
def test_what_does_not_fit_is_refused(config: Any, size_px: tuple[int, int], message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        check_tower(Path("config.json"), config, size_px)


def test_other_towers_are_refused() -> None:
    config = SiglipVisionConfig(**SIZES)
    config.model_type = "pixtral"
    with pytest.raises(CheckpointError, match=r"vision_config.model_type: expected one of .*clip.*, found 'pixtral'"):
        check_tower(Path("config.json"), config, (SIDE_PX, SIDE_PX))
