"""Rotary positions of every scheme beside Transformers' own modules: short texts, long ones, those after a cache."""

from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import LlamaConfig, Phi3Config, Qwen2VLTextConfig, Qwen3VLTextConfig
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding
from transformers.models.phi3.modeling_phi3 import Phi3RotaryEmbedding, apply_rotary_pos_emb
from transformers.models.qwen2_vl.modeling_qwen2_vl import Qwen2VLRotaryEmbedding
from transformers.models.qwen3_vl.modeling_qwen3_vl import Qwen3VLTextRotaryEmbedding

from xattn_export.families.layers.language.positions import PositionAxes, Rotation, positions_of

HEAD, TRAINED, STRETCHED = 20, 48, 96
SIZES = {"num_attention_heads": 2, "num_key_value_heads": 2, "pad_token_id": 0}
SIZES |= {"hidden_size": 2 * HEAD, "max_position_embeddings": STRETCHED}
LLAMA3 = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": TRAINED}
LONG: dict[str, Any] = {"original_max_position_embeddings": TRAINED, "short_factor": [1.0 + n / 9 for n in range(10)]}
LONG |= {"long_factor": [2.0 + n for n in range(10)]}
SCHEMES: dict[str, dict[str, Any]] = {
    "default": {},
    "linear": {"factor": 3.0},
    "dynamic": {"factor": 2.5},
    "yarn": {"factor": 4.0, "original_max_position_embeddings": TRAINED},
    "longrope": LONG,
    "llama3": LLAMA3,
}
# Texts of so many tokens, the cache before the last of them: shorter than was trained, as long, and longer.
TEXTS = [(0, 20), (13, 7), (0, TRAINED), (TRAINED - 1, 2), (TRAINED, 1), (0, STRETCHED), (STRETCHED, 5), (150, 1)]


def _scheme(rope_type: str, **more: Any) -> dict[str, Any]:
    return {"rope_type": rope_type, "rope_theta": 1000.0, **SCHEMES[rope_type], **more}


def _is_same(rotation: Rotation, expected: tuple[Tensor, Tensor]) -> None:
    """Cosines, and sines, whose first half is negative here and positive there."""
    half = rotation.width // 2
    cosine, sine = rotation.cosine.squeeze(-2), rotation.sine.squeeze(-2)
    sine = torch.cat((-sine[..., :half], sine[..., half:]), -1)
    for found, wanted in ((cosine, expected[0]), (sine, expected[1])):
        assert torch.allclose(found[..., : rotation.width], wanted.view(found[..., : rotation.width].shape), atol=2e-5)


@pytest.mark.parametrize("rope_type", SCHEMES)
def test_angles_are_those_of_transformers(rope_type: str) -> None:
    config = LlamaConfig(**SIZES, rope_parameters=_scheme(rope_type))
    positions = positions_of(LlamaRotaryEmbedding(config), config, HEAD)
    for past, length in TEXTS:
        rotary = LlamaRotaryEmbedding(config)
        expected = rotary(torch.zeros(1), torch.arange(past, past + length)[None])
        _is_same(positions(past, length), expected)
        given = torch.arange(past, past + length).expand(3, -1)
        _is_same(positions(0, length, given), tuple(each.expand(3, -1, -1) for each in expected))


@pytest.mark.parametrize("rope_type", ["default", "longrope"])
def test_a_part_of_a_head_is_rotated(rope_type: str) -> None:
    factors = {name: LONG[name][:4] for name in ("short_factor", "long_factor")} if rope_type == "longrope" else {}
    scheme = _scheme(rope_type, partial_rotary_factor=0.4, **factors)
    config = Phi3Config(**SIZES, rope_parameters=scheme, original_max_position_embeddings=TRAINED)
    rotary = Phi3RotaryEmbedding(config)
    positions = positions_of(rotary, config, HEAD)
    heads = torch.randn(1, 2, 60, HEAD, generator=torch.Generator().manual_seed(1))
    for length in (30, 60):
        some = heads[:, :, :length]
        cosine, sine = rotary(some, torch.arange(length)[None])
        expected, _ = apply_rotary_pos_emb(some, some, cosine, sine)
        found = positions(0, length).rotate(some.transpose(1, 2)).transpose(1, 2)
        assert cosine.shape[-1] == 8
        assert torch.allclose(found, expected, atol=2e-5)


@pytest.mark.parametrize("rope_type", ["default", "yarn", "dynamic"])
@pytest.mark.parametrize(
    ("config_class", "rotary_class", "axes", "sections"),
    [
        (Qwen2VLTextConfig, Qwen2VLRotaryEmbedding, "three", [2, 5, 3]),
        (Qwen3VLTextConfig, Qwen3VLTextRotaryEmbedding, "three, interleaved", [4, 3, 3]),
        (Qwen3VLTextConfig, Qwen3VLTextRotaryEmbedding, "three, interleaved", [6, 1, 3]),
    ],
)
def test_positions_of_three_axes_are_those_of_transformers(
    config_class: Any, rotary_class: Any, axes: PositionAxes, sections: list[int], rope_type: str
) -> None:
    scheme = _scheme(rope_type, mrope_section=sections)
    config = config_class(**SIZES, head_dim=HEAD, rope_parameters=scheme)
    for longest in (40, 200):
        places = torch.randint(0, longest, (3, 2, 30), generator=torch.Generator().manual_seed(5))
        rotary = rotary_class(config)
        positions = positions_of(rotary, config, HEAD, axes)
        _is_same(positions(0, 30, places), rotary(torch.zeros(1), places.clone()))
