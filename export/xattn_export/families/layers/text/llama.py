"""Decoder layers of the Llama kind around a checkpoint's own weights, over flat tensors.

RMSNorm (https://arxiv.org/abs/1910.07467), rotary positions (https://arxiv.org/abs/2104.09864), grouped queries
(https://arxiv.org/abs/2305.13245) and SwiGLU (https://arxiv.org/abs/2002.05202), as in https://arxiv.org/abs/2302.13971;
names are those of Transformers' modeling_llama.py. It knows vectors and their cache; what the vectors stand for, words
or an image, and what is made of the result, is the family's affair.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn

from xattn_edge.attention import KeyValue
from xattn_export.families.layers.common import attend_with_cache, fuse_linears
from xattn_runtime.errors import CheckpointError
from xattn_runtime.json_reader import show

if TYPE_CHECKING:
    from transformers import LlamaModel

__all__ = ["LlamaDecoder", "check_llama"]

# Of the ways to stretch rotary positions those whose frequencies are the same at every length.
_ROPE_TYPES = ("default", "linear", "llama3", "yarn")


class LlamaDecoder(nn.Module):
    """Vectors `[batch, length, width]` after a cache to as many, normalised; and the longer cache.

    The cache is a layer's rotated keys, and values, `[batch, kv_heads, past, head_width]`: fewer heads than queries
    have, where these are grouped.
    """

    def __init__(self, model: LlamaModel) -> None:
        super().__init__()
        self.positions = RotaryPositions(model.rotary_emb)
        self.layers = nn.ModuleList(LlamaLayer(layer) for layer in model.layers)
        self.norm = RmsNorm(model.norm)

    def forward(self, tokens: Tensor, past: Sequence[KeyValue]) -> tuple[Tensor, list[KeyValue]]:
        rotation = self.positions(past[0].key.shape[2], tokens.shape[1])
        present = []
        for layer, layer_past in zip(self.layers, past, strict=True):
            tokens, layer_present = cast(LlamaLayer, layer).with_cache(tokens, layer_past, rotation)
            present.append(layer_present)
        return self.norm(tokens), present


class RmsNorm(nn.Module):
    """`x / sqrt(mean(x²) + epsilon) × weight`, over the last axis: written so that ONNX Runtime makes it one kernel."""

    def __init__(self, norm: Any) -> None:
        super().__init__()
        self.weight = norm.weight
        self.epsilon = norm.variance_epsilon

    def forward(self, tokens: Tensor) -> Tensor:
        size = torch.sqrt(tokens.pow(2).mean(-1, keepdim=True) + self.epsilon)
        return cast(Tensor, tokens / size * self.weight)


class RotaryPositions(nn.Module):
    """Of `length` positions after `past` others cosines and sines, `[length, 1, head_width]` each.

    The sines of the first half of a head are negative: `x × cosine + swapped(x) × sine` then turns it.
    """

    def __init__(self, rotary: Any) -> None:
        super().__init__()
        self.frequencies = nn.Buffer(rotary.inv_freq.detach().clone(), persistent=False)
        self.scale = float(rotary.attention_scaling)

    def forward(self, past: int, length: int) -> tuple[Tensor, Tensor]:
        places = torch.arange(past, past + length, device=self.frequencies.device).to(torch.float32)
        angles = (places[:, None] * self.frequencies)[:, None]
        cosine, sine = angles.cos() * self.scale, angles.sin() * self.scale
        return torch.cat((cosine, cosine), -1), torch.cat((-sine, sine), -1)


class LlamaLayer(nn.Module):
    """Self-attention with rotated, grouped queries, then a gated feed-forward network, each on normalised tokens."""

    def __init__(self, layer: Any) -> None:
        super().__init__()
        attention, feed_forward = layer.self_attn, layer.mlp
        self.head_width = int(attention.head_dim)
        self.heads = attention.q_proj.out_features // self.head_width
        self.kv_heads = attention.k_proj.out_features // self.head_width
        self.scale = float(attention.scaling)
        self.qkv = fuse_linears(attention.q_proj, attention.k_proj, attention.v_proj)
        self.attention_output = attention.o_proj
        self.attention_norm = RmsNorm(layer.input_layernorm)
        self.gate_and_up = fuse_linears(feed_forward.gate_proj, feed_forward.up_proj)
        self.activation = feed_forward.act_fn
        self.output = feed_forward.down_proj
        self.feed_forward_norm = RmsNorm(layer.post_attention_layernorm)

    def with_cache(self, tokens: Tensor, past: KeyValue, rotation: tuple[Tensor, Tensor]) -> tuple[Tensor, KeyValue]:
        """New tokens, causal, after those of the cache; and the longer cache."""
        query_width, kv_width = self.heads * self.head_width, self.kv_heads * self.head_width
        rotated, value = torch.split(self.qkv(self.attention_norm(tokens)), [query_width + kv_width, kv_width], -1)
        query, key = torch.split(self._rotated(rotated, rotation), [query_width, kv_width], -1)
        attended, present = attend_with_cache(
            query, key, value, past, self.heads, kv_heads=self.kv_heads, scale=self.scale
        )
        tokens = tokens + self.attention_output(attended)
        gate, up = self.gate_and_up(self.feed_forward_norm(tokens)).chunk(2, -1)
        return tokens + self.output(self.activation(gate) * up), present

    def _rotated(self, tokens: Tensor, rotation: tuple[Tensor, Tensor]) -> Tensor:
        """Queries and keys together, `[batch, length, (heads + kv_heads) × head_width]`, rotated by their positions."""
        (cosine, sine), (batch, length, _) = rotation, tokens.shape
        heads = tokens.view(batch, length, self.heads + self.kv_heads, self.head_width)
        first, second = heads.chunk(2, -1)
        return (heads * cosine + torch.cat((second, first), -1) * sine).flatten(2)


def check_llama(path: Path, config: Any) -> None:
    """CheckpointError unless `config`, of the text model that the file at `path` describes, is one of these decoders.

    Models of other types would be built, and be others.
    """
    if config.model_type != "llama":
        raise CheckpointError(
            f"{path}: text_config.model_type: expected llama, found {show(config.model_type)}; decoders of other kinds "
            "cannot be exported yet"
        )
    rope_type = config.rope_parameters["rope_type"]
    if rope_type not in _ROPE_TYPES:
        raise CheckpointError(
            f"{path}: text_config.rope_parameters.rope_type: expected {', '.join(_ROPE_TYPES)}, found "
            f"{show(rope_type)}; its frequencies depend on the length, which a graph has no branch for"
        )
