"""BLIP's layers around a checkpoint's own weights, over flat tensors, with one `Attention` operator each.

The architecture is that of https://arxiv.org/abs/2201.12086; names are those of Transformers' modeling_blip.py and
modeling_blip_text.py. It knows layers; what is made of them is in `blip.py`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from xattn_edge.attention import KeyValue, split_heads
from xattn_export.families.layers.common import (
    attend,
    attend_heads,
    attend_with_cache,
    for_each_picture,
    fuse_linears,
)

if TYPE_CHECKING:
    from transformers.models.blip.modeling_blip import BlipVisionModel
    from transformers.models.blip.modeling_blip_text import BlipTextModel

__all__ = ["CrossProjections", "TextEmbeddings", "TextLayer", "VisionEncoder", "padding_mask"]


class VisionEncoder(nn.Module):
    """Picture `[batch, 3, height, width]` to image tokens `[batch, 1 + patches, width]`, normalised."""

    def __init__(self, model: BlipVisionModel) -> None:
        super().__init__()
        self.embeddings = model.embeddings
        self.layers = nn.ModuleList(VisionLayer(layer) for layer in model.encoder.layers)
        self.norm = model.post_layernorm

    def forward(self, pixel_values: Tensor) -> Tensor:
        embeddings = self.embeddings
        patches = embeddings.patch_embedding(pixel_values).flatten(2).transpose(1, 2)
        first = for_each_picture(embeddings.class_embedding, patches)
        tokens = torch.cat((first, patches), 1) + embeddings.position_embedding
        for layer in self.layers:
            tokens = layer(tokens)
        return cast(Tensor, self.norm(tokens))


class VisionLayer(nn.Module):
    """Attention, then a feed-forward network, each on normalised tokens."""

    def __init__(self, layer: Any) -> None:
        super().__init__()
        self.attention = layer.self_attn
        self.attention_norm = layer.layer_norm1
        self.feed_forward = layer.mlp
        self.feed_forward_norm = layer.layer_norm2

    def forward(self, tokens: Tensor) -> Tensor:
        query, key, value = self.attention.qkv(self.attention_norm(tokens)).chunk(3, -1)
        attended = attend(query, key, value, self.attention.num_heads, scale=self.attention.scale)
        tokens = tokens + self.attention.projection(attended)
        return cast(Tensor, tokens + self.feed_forward(self.feed_forward_norm(tokens)))


class CrossProjections(nn.Module):
    """States to the cross-attention keys and values of every layer of a text model, `key_0`, `value_0`, …"""

    def __init__(self, model: BlipTextModel) -> None:
        super().__init__()
        attentions = [layer.crossattention.self for layer in model.encoder.layer]
        self.heads = attentions[0].num_attention_heads
        self.projections = nn.ModuleList(fuse_linears(attention.key, attention.value) for attention in attentions)

    def forward(self, states: Tensor) -> tuple[Tensor, ...]:
        """`[batch, tokens, width]` to `[batch, heads, tokens, head_width]` each."""
        parts = (part for projection in self.projections for part in projection(states).chunk(2, -1))
        return tuple(split_heads(part, self.heads) for part in parts)


class TextEmbeddings(nn.Module):
    """Token ids after `past` others to vectors with their positions, normalised."""

    def __init__(self, model: BlipTextModel) -> None:
        super().__init__()
        self.words = model.embeddings.word_embeddings
        self.positions = model.embeddings.position_embeddings
        self.norm = model.embeddings.LayerNorm

    def forward(self, input_ids: Tensor, past: int = 0) -> Tensor:
        # By lookup: a slice of the table would bind the lengths to its size in the exported program.
        places = torch.arange(past, past + input_ids.shape[1], device=input_ids.device)
        return cast(Tensor, self.norm(self.words(input_ids) + F.embedding(places, self.positions.weight)))


class TextLayer(nn.Module):
    """Self-attention, cross-attention where there is a context, a feed-forward network, each normalised after."""

    def __init__(self, layer: Any) -> None:
        super().__init__()
        attention, cross = layer.attention, layer.crossattention
        self.heads = attention.self.num_attention_heads
        self.qkv = fuse_linears(attention.self.query, attention.self.key, attention.self.value)
        self.attention_output = attention.output
        self.cross_query = cross.self.query
        self.cross_output = cross.output
        self.intermediate = layer.intermediate
        self.output = layer.output

    def with_cache(self, tokens: Tensor, past: KeyValue, context: KeyValue) -> tuple[Tensor, KeyValue]:
        """New tokens, causal, after those of the cache; and the longer cache."""
        query, key, value = self.qkv(tokens).chunk(3, -1)
        attended, present = attend_with_cache(query, key, value, past, self.heads)
        return self._after_attention(tokens, attended, context), present

    def forward(
        self, tokens: Tensor, mask: Tensor, context: KeyValue | None, context_mask: Tensor | None = None
    ) -> Tensor:
        """All tokens of a text, each of which sees those that `mask` allows, and of the context `context_mask`."""
        query, key, value = self.qkv(tokens).chunk(3, -1)
        attended = attend(query, key, value, self.heads, mask=mask)
        return self._after_attention(tokens, attended, context, context_mask)

    def _after_attention(
        self, tokens: Tensor, attended: Tensor, context: KeyValue | None, context_mask: Tensor | None = None
    ) -> Tensor:
        tokens = self.attention_output(attended, tokens)
        if context is not None:
            seen = attend_heads(self.cross_query(tokens), context, context_mask)
            tokens = self.cross_output(seen, tokens)
        return cast(Tensor, self.output(self.intermediate(tokens), tokens))


def padding_mask(attention_mask: Tensor, queries: int | None = None) -> Tensor:
    """Int64 `[batch, length]`, 1 for a token, to bool `[batch, 1, queries, length]`: every query sees all tokens.

    queries: by default the tokens themselves.
    """
    rows = attention_mask.shape[1] if queries is None else queries
    return attention_mask.to(torch.bool)[:, None, None, :].expand(-1, 1, rows, -1)
