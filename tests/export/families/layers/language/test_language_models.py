"""Language models beside Transformers' own: logits and caches, after caches of several lengths."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from onnxruntime import InferenceSession
from torch import Tensor
from transformers import (
    Gemma2Config,
    Gemma3TextConfig,
    GemmaConfig,
    GraniteConfig,
    Lfm2Config,
    LlamaConfig,
    MistralConfig,
    Phi3Config,
    Qwen2Config,
    Qwen3Config,
    Qwen3MoeConfig,
    SmolLM3Config,
)

from tests.export.families.layers.language.language_models import (
    VOCABULARY,
    StepGraph,
    first_cache,
    role_of,
    tiny_model,
)
from xattn_export.decompose import decompose_attention, split_cache
from xattn_export.families.base.split_role import split_role
from xattn_export.families.checkpoint_folder.caches import cache_with_states, presents_with_states
from xattn_export.families.layers.language.table import check_language_model, language_decoder
from xattn_export.graph.generator import generator_graph
from xattn_export.parity import check_parity
from xattn_export.to_onnx import export_role
from xattn_runtime.bundle.contract import past_names, role_contract, state_names
from xattn_runtime.errors import CheckpointError

WINDOWED = {"use_sliding_window": True, "sliding_window": 4, "max_window_layers": 1}
MODELS: dict[str, tuple[Any, dict[str, Any]]] = {
    "llama": (LlamaConfig, {"attention_bias": True, "mlp_bias": True, "head_dim": 12, "tie_word_embeddings": True}),
    "llama, dynamic": (LlamaConfig, {"rope_parameters": {"rope_type": "dynamic", "factor": 2.5, "rope_theta": 1e3}}),
    "qwen2": (Qwen2Config, {}),
    "qwen2, windows": (Qwen2Config, WINDOWED),
    "qwen3": (Qwen3Config, {"head_dim": 12, "attention_bias": True}),
    "qwen3, windows": (Qwen3Config, {"head_dim": 12, **WINDOWED}),
    "gemma": (GemmaConfig, {"head_dim": 12, "num_key_value_heads": 1}),
    "gemma2": (
        Gemma2Config,
        {
            "head_dim": 12,
            "sliding_window": 4,
            "query_pre_attn_scalar": 20,
            "attn_logit_softcapping": 0.5,
            "final_logit_softcapping": 1.5,
        },
    ),
    "gemma3": (
        Gemma3TextConfig,
        {
            "head_dim": 12,
            "sliding_window": 4,
            "query_pre_attn_scalar": 20,
            "layer_types": ["sliding_attention", "full_attention"],
            "rope_scaling": {"rope_type": "linear", "factor": 8.0},
            "rope_theta": 1e5,
            "rope_local_base_freq": 1e3,
        },
    ),
    "granite": (
        GraniteConfig,
        {
            "embedding_multiplier": 3.0,
            "residual_multiplier": 0.4,
            "attention_multiplier": 0.2,
            "logits_scaling": 2.0,
            "attention_bias": True,
        },
    ),
    "lfm2": (Lfm2Config, {"layer_types": ["conv", "full_attention", "conv"], "num_hidden_layers": 3}),
    "lfm2, biases": (
        Lfm2Config,
        {"layer_types": ["full_attention", "conv"], "conv_bias": True, "conv_L_cache": 4, "tie_word_embeddings": False},
    ),
    "mistral": (MistralConfig, {"sliding_window": 5}),
    "mistral, no window": (MistralConfig, {"sliding_window": None}),
    "phi3": (
        Phi3Config,
        {
            "num_attention_heads": 2,
            "num_key_value_heads": 1,
            "original_max_position_embeddings": 32,
            "rope_parameters": {
                "rope_type": "longrope",
                "rope_theta": 1e3,
                "partial_rotary_factor": 0.5,
                "short_factor": [1.0, 1.1, 1.2, 1.3],
                "long_factor": [1.0, 2.0, 3.0, 5.0],
            },
        },
    ),
    "phi3, windows": (Phi3Config, {"sliding_window": 6}),
    "smollm3": (
        SmolLM3Config,
        {"no_rope_layers": [1, 0], "use_sliding_window": True, "sliding_window": 4},
    ),
}
LONGEST = 90


@pytest.mark.usefixtures("standard_attention")
@pytest.mark.parametrize("name", MODELS)
def test_logits_and_caches_are_those_of_transformers(name: str) -> None:
    config_class, settings = MODELS[name]
    model = tiny_model(config_class, **settings)
    check_language_model(Path("config.json"), model.config)
    graph = StepGraph(model)
    past: Sequence[Tensor] = first_cache(graph.decoder, model.config, 2)
    cache = cache_with_states(past, model.config)
    ids = torch.randint(0, VOCABULARY, (2, LONGEST), generator=torch.Generator().manual_seed(3))
    for start, end in ((0, 80), (80, 81), (81, 88), (88, LONGEST)):
        expected = model(ids[:, start:end], past_key_values=cache, use_cache=True).logits[:, -1]
        logits, _, _, *past = graph(ids[:, start:end], *past)
        assert expected.std() > 0.1
        assert torch.allclose(logits, expected, atol=1e-5 * float(expected.abs().max()))
        kept = presents_with_states(cache)
        assert all(torch.allclose(found, of_layer, atol=2e-5) for found, of_layer in zip(past, kept, strict=True))


@pytest.mark.parametrize("name", ["gemma2", "phi3", "lfm2"])
@pytest.mark.slow
def test_graphs_of_every_form_of_attention_and_cache_are_those_of_transformers(name: str) -> None:
    config_class, settings = MODELS[name]
    role = role_of(tiny_model(config_class, **settings), LONGEST)
    graph = export_role(role, "standard", 23)
    assert check_parity(graph, role).largest_error < 2e-5
    assert check_parity(decompose_attention(graph, opset=18), role).largest_error < 2e-5
    assert check_parity(split_cache(graph), split_role(role)).largest_error < 2e-5


@pytest.mark.slow
def test_a_loop_carries_states_as_it_carries_keys_and_values() -> None:
    config_class, settings = MODELS["lfm2"]
    model = tiny_model(config_class, **settings)
    loop = generator_graph(export_role(role_of(model, LONGEST), "standard", 23))
    prompt = torch.randint(3, VOCABULARY, (3, 5), generator=torch.Generator().manual_seed(9))
    session = InferenceSession(loop.SerializeToString(), providers=["CPUExecutionProvider"])
    contract = role_contract("generator", [each.name for each in session.get_inputs()], ["token_ids", "log_probs"])
    assert set(contract.inputs) == {each.name for each in session.get_inputs()}
    first = first_cache(language_decoder(model.model), model.config, 3)
    names = [*past_names(1), *state_names("past", 2)]
    ends = torch.arange(30, VOCABULARY)
    ids, _ = session.run(
        None,
        {
            "input_ids": prompt.numpy(),
            "max_new_tokens": np.array(12),
            "end_token_ids": ends.numpy(),
            "pad_token_id": np.array(0),
            **{name: tensor.numpy() for name, tensor in zip(names, first, strict=True)},
        },
    )
    expected = model.generate(prompt, max_new_tokens=12, eos_token_id=ends.tolist(), pad_token_id=0, do_sample=False)
    assert ids.tolist() == expected[:, 5:].tolist()
    assert len({tuple(row) for row in ids.tolist()}) == 3


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (Qwen3MoeConfig(), r"text_config\.model_type: expected llama or qwen2 or .* found 'qwen3_moe'"),
        (
            Lfm2Config(num_hidden_layers=2, layer_types=["conv", "conv"]),
            "layer_types: expected full_attention for some",
        ),
        (Lfm2Config(conv_L_cache=1), "conv_L_cache: expected a kernel of 2 tokens or more, found 1"),
        (GemmaConfig(use_bidirectional_attention=True), "use_bidirectional_attention: expected false, found True"),
        (LlamaConfig(hidden_act="tanh"), "hidden_act: expected one of silu, .* found 'tanh'"),
        (
            LlamaConfig(
                rope_parameters={
                    "rope_type": "linear",
                    "factor": 2.0,
                    "rope_theta": 1e4,
                    "partial_rotary_factor": 0.5,
                }
            ),
            r"rope_parameters\.partial_rotary_factor: expected 1, or none, found 0\.5",
        ),
    ],
)
def test_what_was_not_proved_is_refused(config: Any, message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        check_language_model(Path("config.json"), config)
