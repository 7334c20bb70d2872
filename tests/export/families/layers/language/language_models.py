"""Tiny causal language models of Transformers, and the same weights as a decoding step of flat tensors."""

from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, DynamicCache, PreTrainedModel

from tests.export.families.conftest import randomize
from xattn_edge.attention import KeyValue
from xattn_edge.attention.caches import flatten, pairs
from xattn_export.families.base import Role
from xattn_export.families.base.standard_roles import decoder_role
from xattn_export.families.checkpoint_folder.caches import dynamic_cache, dynamic_presents
from xattn_export.families.layers.common import head
from xattn_export.families.layers.language.head import LanguageHead
from xattn_export.families.layers.language.table import language_decoder

__all__ = ["VOCABULARY", "StepGraph", "empty_cache", "role_of", "tiny_model"]

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
        tokens, present = self.decoder(self.words(input_ids), pairs(past))
        return *head(self.head(tokens[:, -1])), *flatten(present)


def empty_cache(model: Any, batch: int) -> list[KeyValue]:
    """Keys and values of no token."""
    config = model.config
    width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    empty = torch.zeros(batch, config.num_key_value_heads, 0, width)
    return [KeyValue(empty, empty)] * config.num_hidden_layers


def role_of(model: Any, longest: int) -> Role:
    """The step of `model`, with Transformers' own model as its reference."""

    def reference(input_ids: Tensor, *past: Tensor) -> tuple[Tensor, ...]:
        cache: DynamicCache = dynamic_cache(pairs(past))
        output = model(input_ids, past_key_values=cache, use_cache=True, logits_to_keep=1)
        return *head(output.logits[:, -1]), *dynamic_presents(cache)

    cache = empty_cache(model, 1)
    return decoder_role(
        StepGraph(model),
        reference,
        vocabulary=VOCABULARY,
        layers=len(cache),
        kv_heads=cache[0].key.shape[1],
        head_width=cache[0].key.shape[3],
        longest=longest,
    )
