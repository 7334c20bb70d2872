"""Decoder layers of the Llama kind beside Transformers' own, in torch; the graphs are compared with the families."""

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlamaConfig, LlamaModel

from tests.export.families.conftest import randomize
from xattn_edge.attention import KeyValue
from xattn_export.families.layers.text.llama import LlamaDecoder, check_llama
from xattn_runtime.errors import CheckpointError

WIDTH, LENGTH = 48, 90
ROPES: list[dict[str, Any]] = [
    {"rope_type": "default", "rope_theta": 500.0},
    {"rope_type": "linear", "rope_theta": 10000.0, "factor": 3.0},
    {"rope_type": "yarn", "rope_theta": 1000.0, "factor": 4.0, "original_max_position_embeddings": 32},
    {
        "rope_type": "llama3",
        "rope_theta": 10000.0,
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 32,
    },
]
SHAPES: list[dict[str, Any]] = [
    {"num_attention_heads": 6, "num_key_value_heads": 6},
    {"num_attention_heads": 6, "num_key_value_heads": 2, "attention_bias": True},
    {"num_attention_heads": 4, "num_key_value_heads": 1, "head_dim": 20, "mlp_bias": True, "hidden_act": "gelu"},
]


def _config(**settings: Any) -> LlamaConfig:
    sizes = {"hidden_size": WIDTH, "intermediate_size": 70, "num_hidden_layers": 2, "vocab_size": 10}
    return LlamaConfig(**sizes, max_position_embeddings=128, rms_norm_eps=1e-3, **settings)


@pytest.mark.parametrize("rope", ROPES, ids=[rope["rope_type"] for rope in ROPES])
@pytest.mark.parametrize("shape", SHAPES, ids=["all heads", "grouped", "one head of keys"])
def test_layers_are_those_of_transformers(shape: dict[str, Any], rope: dict[str, Any]) -> None:
    config = _config(rope_parameters=rope, **shape)
    model = LlamaModel(config).eval().requires_grad_(False)
    randomize(model)
    tokens = torch.randn(2, LENGTH, WIDTH, generator=torch.Generator().manual_seed(4))
    expected = model(inputs_embeds=tokens, use_cache=True)
    empty = torch.zeros(2, config.num_key_value_heads, 0, config.head_dim)
    found, present = LlamaDecoder(model)(tokens, [KeyValue(empty, empty)] * 2)
    assert expected.last_hidden_state.std() > 0.5
    assert torch.allclose(found, expected.last_hidden_state, atol=2e-5)
    for cache, layer in zip(present, expected.past_key_values.layers, strict=True):
        assert torch.allclose(cache.key, layer.keys, atol=2e-5)
        assert torch.allclose(cache.value, layer.values, atol=2e-5)


def test_positions_count_from_the_cache() -> None:
    positions = LlamaDecoder(LlamaModel(_config(num_attention_heads=6))).positions
    whole, part = positions(0, 12), positions(7, 5)
    assert all(torch.equal(one[7:], other) for one, other in zip(whole, part, strict=True))


def test_frequencies_that_change_with_the_length_are_refused() -> None:
    rope = {"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 2.0}
    with pytest.raises(
        CheckpointError, match=r"config.json: .*rope_type: expected default, linear, .* found 'dynamic'"
    ):
        check_llama(Path("config.json"), _config(num_attention_heads=6, rope_parameters=rope))
