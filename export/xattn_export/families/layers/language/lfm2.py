"""LFM2's text model under the names of Llama's, so that one decoder reads both."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from torch import nn

__all__ = ["under_names_of_llama"]


def under_names_of_llama(model: Any) -> Any:
    """`model`, an `Lfm2Model`, as `LanguageDecoder` reads a text model; a layer has `self_attn` or `conv`."""
    return SimpleNamespace(
        config=model.config,
        rotary_emb=model.rotary_emb,
        norm=model.embedding_norm,
        layers=[_layer(layer) for layer in model.layers],
    )


def _layer(layer: Any) -> Any:
    network = layer.feed_forward
    named = SimpleNamespace(
        input_layernorm=layer.operator_norm,
        post_attention_layernorm=layer.ffn_norm,
        mlp=SimpleNamespace(gate_proj=network.w1, up_proj=network.w3, down_proj=network.w2, act_fn=nn.SiLU()),
    )
    if not layer.is_attention_layer:
        named.conv = layer.conv
        return named
    attention = layer.self_attn
    named.self_attn = SimpleNamespace(
        head_dim=attention.head_dim,
        scaling=attention.scaling,
        q_proj=attention.q_proj,
        k_proj=attention.k_proj,
        v_proj=attention.v_proj,
        o_proj=attention.out_proj,
        q_norm=attention.q_layernorm,
        k_norm=attention.k_layernorm,
    )
    return named
