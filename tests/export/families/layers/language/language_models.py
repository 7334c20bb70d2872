"""Tiny causal language models of Transformers, and the same weights as a decoding step of flat tensors."""

from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, PreTrainedModel

from tests.export.families.conftest import randomize
from xattn_export.families.base import Role
from xattn_export.families.base.standard_roles import decoder_role
from xattn_export.families.checkpoint_folder.caches import cache_with_states, presents_with_states
from xattn_export.families.layers.common import head
from xattn_export.families.layers.language.decoder import LanguageDecoder
from xattn_export.families.layers.language.head import LanguageHead
from xattn_export.families.layers.language.table import language_decoder

__all__ = ["SIZES", "VOCABULARY", "StepGraph", "first_cache", "role_of", "tiny_model"]

VOCABULARY = 41
SIZES = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": VOCABULARY,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
}


def tiny_model(config_class: Any, **settings: Any) -> PreTrainedModel:
    """A causal language model with random weights of a sane size. `settings`: of its configuration."""
    config = config_class(**{**SIZES, **settings})
    model = AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval().requires_grad_(False)
    randomize(model)
    return model


class StepGraph(nn.Module):
    """Token ids after a cache to logits of the last, as the classes of Transformers with a head compute them."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        config = model.config
        self.words = model.model.embed_tokens
        self.decoder = language_decoder(model.model)
        self.head = LanguageHead(
            model.lm_head,
            divisor=getattr(config, "logits_scaling", 1.0),
            softcap=getattr(config, "final_logit_softcapping", None),
        )

    def forward(self, input_ids: Tensor, *past: Tensor) -> tuple[Tensor, ...]:
        tokens, present = self.decoder.step(self.words(input_ids), past)
        return *head(self.head(tokens[:, -1])), *present


def first_cache(decoder: LanguageDecoder, config: Any, batch: int) -> list[Tensor]:
    """Keys and values of no token, and states of zeros."""
    empty = torch.zeros(batch, config.num_key_value_heads, 0, decoder.head_width)
    return [empty] * (2 * decoder.attention_layers) + [torch.zeros(batch, *shape) for shape in decoder.states]


def role_of(model: Any, longest: int) -> Role:
    """The step of `model`, with Transformers' own model as its reference."""

    def reference(input_ids: Tensor, *past: Tensor) -> tuple[Tensor, ...]:
        cache = cache_with_states(past, model.config)
        output = model(input_ids, past_key_values=cache, use_cache=True, logits_to_keep=1)
        return *head(output.logits[:, -1]), *presents_with_states(cache)

    graph = StepGraph(model)
    return decoder_role(
        graph,
        reference,
        vocabulary=VOCABULARY,
        layers=graph.decoder.attention_layers,
        kv_heads=model.config.num_key_value_heads,
        head_width=graph.decoder.head_width,
        longest=longest,
        states=graph.decoder.states,
    )
