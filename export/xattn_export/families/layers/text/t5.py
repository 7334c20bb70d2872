"""T5's encoder and decoder around a checkpoint's own weights, over flat tensors, with one `Attention` operator each.

The architecture is that of https://arxiv.org/abs/1910.10683, with the gated feed-forward network of
https://arxiv.org/abs/2002.05202 where a model has it; names are those of Transformers' modeling_t5.py. It knows vectors
and token ids; what stands among them for an image is the family's affair.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from xattn_edge.attention import KeyValue
from xattn_edge.attention.caches import flatten, pairs
from xattn_export.families.layers.common import (
    RmsNorm,
    attend,
    attend_heads,
    attend_with_cache,
    fuse_linears,
    head,
)
from xattn_export.families.layers.text.decoders import activation

if TYPE_CHECKING:
    from transformers import T5ForConditionalGeneration
    from transformers.models.t5.modeling_t5 import T5Attention, T5Stack

__all__ = ["T5DecoderGraph", "T5Encoder"]

# T5 does not divide its scores by the root of the width.
_SCALE = 1.0
_BARRED = torch.finfo(torch.float32).min


class T5Encoder(nn.Module):
    """Vectors `[batch, tokens, width]`, with an int64 mask `[batch, tokens]`, to as many states, normalised."""

    def __init__(self, model: T5Stack) -> None:
        super().__init__()
        self.distances = T5RelativeBias(cast(Any, model.block[0]).layer[0].SelfAttention)
        self.layers = nn.ModuleList(T5EncoderLayer(block) for block in model.block)
        self.norm = RmsNorm(model.final_layer_norm)

    def forward(self, tokens: Tensor, attention_mask: Tensor) -> Tensor:
        places = torch.arange(tokens.shape[1], device=tokens.device)
        is_padding = attention_mask[:, None, None, :] == 0
        bias = self.distances(places, places).masked_fill(is_padding, _BARRED)
        for layer in self.layers:
            tokens = layer(tokens, bias)
        return cast(Tensor, self.norm(tokens))


class T5DecoderGraph(nn.Module):
    """One decoding step: tokens after a cache, attending to a text; logits of the last position alone."""

    def __init__(self, model: T5ForConditionalGeneration) -> None:
        super().__init__()
        decoder = model.decoder
        self.words = decoder.embed_tokens
        self.distances = T5RelativeBias(cast(Any, decoder.block[0]).layer[0].SelfAttention)
        self.layers = nn.ModuleList(T5DecoderLayer(block) for block in decoder.block)
        self.norm = RmsNorm(decoder.final_layer_norm)
        self.head = model.lm_head
        self.scale = float(model.config.d_model**-0.5) if model.config.scale_decoder_outputs else 1.0

    def forward(self, input_ids: Tensor, *caches: Tensor) -> tuple[Tensor, ...]:
        """`caches` holds the past keys and values of every layer, then the cross keys and values."""
        past, cross = pairs(caches[: len(caches) // 2]), pairs(caches[len(caches) // 2 :])
        before, length = past[0].key.shape[2], input_ids.shape[1]
        queries = torch.arange(before, before + length, device=input_ids.device)
        keys = torch.arange(before + length, device=input_ids.device)
        bias = self.distances(queries, keys).masked_fill(keys > queries[:, None], _BARRED)
        tokens, present = self.words(input_ids), []
        for layer, layer_past, layer_cross in zip(self.layers, past, cross, strict=True):
            tokens, layer_present = cast(T5DecoderLayer, layer).with_cache(tokens, layer_past, layer_cross, bias)
            present.append(layer_present)
        return *head(self.head(self.norm(tokens[:, -1]) * self.scale)), *flatten(present)


class T5RelativeBias(nn.Module):
    """Positions of queries and of keys to what their distance adds to a score, `[1, heads, queries, keys]`.

    T5 sorts distances into buckets by their logarithm. Beyond the largest all are in the last one, so the bucket of
    every other is computed here, by the model's own function, and the graph looks it up: no device can round it.
    """

    table: Tensor

    def __init__(self, attention: T5Attention) -> None:
        super().__init__()
        self.reach = attention.relative_attention_max_distance
        buckets = attention._relative_position_bucket(
            torch.arange(-self.reach, self.reach + 1),
            bidirectional=not attention.is_decoder,
            num_buckets=attention.relative_attention_num_buckets,
            max_distance=self.reach,
        )
        self.register_buffer("table", attention.relative_attention_bias.weight[buckets].detach(), persistent=False)

    def forward(self, queries: Tensor, keys: Tensor) -> Tensor:
        distances = (keys[None, :] - queries[:, None]).clamp(-self.reach, self.reach)
        return F.embedding(distances + self.reach, self.table).permute(2, 0, 1)[None]


class T5EncoderLayer(nn.Module):
    """Self-attention and a feed-forward network, each on normalised tokens."""

    def __init__(self, block: Any) -> None:
        super().__init__()
        attention = block.layer[0].SelfAttention
        self.heads = attention.n_heads
        self.qkv = fuse_linears(attention.q, attention.k, attention.v)
        self.attention_output = attention.o
        self.attention_norm = RmsNorm(block.layer[0].layer_norm)
        self.feed_forward = T5FeedForward(block.layer[-1])

    def forward(self, tokens: Tensor, bias: Tensor) -> Tensor:
        query, key, value = self.qkv(self.attention_norm(tokens)).chunk(3, -1)
        attended = attend(query, key, value, self.heads, mask=bias, scale=_SCALE)
        return cast(Tensor, self.feed_forward(tokens + self.attention_output(attended)))


class T5DecoderLayer(nn.Module):
    """Self-attention, cross-attention, a feed-forward network, each on normalised tokens."""

    def __init__(self, block: Any) -> None:
        super().__init__()
        attention, cross = block.layer[0].SelfAttention, block.layer[1].EncDecAttention
        self.heads = attention.n_heads
        self.qkv = fuse_linears(attention.q, attention.k, attention.v)
        self.attention_output = attention.o
        self.attention_norm = RmsNorm(block.layer[0].layer_norm)
        self.cross_query = cross.q
        self.cross_output = cross.o
        self.cross_norm = RmsNorm(block.layer[1].layer_norm)
        self.feed_forward = T5FeedForward(block.layer[-1])

    def with_cache(self, tokens: Tensor, past: KeyValue, context: KeyValue, bias: Tensor) -> tuple[Tensor, KeyValue]:
        """New tokens after those of the cache, each seeing what `bias` lets it; and the longer cache."""
        query, key, value = self.qkv(self.attention_norm(tokens)).chunk(3, -1)
        attended, present = attend_with_cache(query, key, value, past, self.heads, mask=bias, scale=_SCALE)
        tokens = tokens + self.attention_output(attended)
        query = self.cross_query(self.cross_norm(tokens))
        tokens = tokens + self.cross_output(attend_heads(query, context, scale=_SCALE))
        return cast(Tensor, self.feed_forward(tokens)), present


class T5FeedForward(nn.Module):
    """A feed-forward network on normalised tokens, gated or not, added to them."""

    def __init__(self, layer: Any) -> None:
        super().__init__()
        dense = layer.DenseReluDense
        self.norm = RmsNorm(layer.layer_norm)
        self.is_gated = hasattr(dense, "wi_0")
        self.widen = dense.wi_0 if self.is_gated else dense.wi
        self.gate = dense.wi_1 if self.is_gated else None
        self.activation = activation(dense.act)
        self.output = dense.wo

    def forward(self, tokens: Tensor) -> Tensor:
        normed = self.norm(tokens)
        widened = self.activation(self.widen(normed))
        if self.gate is not None:
            widened = widened * self.gate(normed)
        return cast(Tensor, tokens + self.output(widened))
