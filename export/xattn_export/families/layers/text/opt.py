"""OPT around a checkpoint's own weights, over flat tensors, with an `Attention` operator a layer; images in its text.

The architecture is that of https://arxiv.org/abs/2205.01068; names are those of Transformers' modeling_opt.py.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

from torch import Tensor, nn
from torch.nn import functional as F

from xattn_edge.attention import KeyValue
from xattn_edge.attention.caches import flatten, pairs
from xattn_export.families.layers.common import attend_with_cache, embed_with_image, fuse_linears, head, places

if TYPE_CHECKING:
    from transformers.models.opt.modeling_opt import OPTDecoder

__all__ = ["OptDecoderGraph"]


class OptDecoderGraph(nn.Module):
    """One decoding step: tokens after a cache, image tokens among them; logits of the last position alone."""

    def __init__(self, model: Any, placeholder: int) -> None:
        super().__init__()
        decoder = model.model.decoder
        self.embeddings = OptEmbeddings(decoder, placeholder)
        self.layers = nn.ModuleList(OptLayer(layer) for layer in decoder.layers)
        self.norm = decoder.final_layer_norm or nn.Identity()
        self.head = model.lm_head

    def forward(self, input_ids: Tensor, image_tokens: Tensor, *past: Tensor) -> tuple[Tensor, ...]:
        cache = pairs(past)
        tokens = self.embeddings(input_ids, image_tokens, cache[0].key.shape[2])
        present = []
        for layer, layer_past in zip(self.layers, cache, strict=True):
            tokens, layer_present = cast(OptLayer, layer).with_cache(tokens, layer_past)
            present.append(layer_present)
        return *head(self.head(self.norm(tokens[:, -1]))), *flatten(present)


class OptEmbeddings(nn.Module):
    """Tokens after `past` others, those of the image in their places, to vectors with learned positions."""

    def __init__(self, model: OPTDecoder, placeholder: int) -> None:
        super().__init__()
        self.words = model.embed_tokens
        self.positions = model.embed_positions
        self.placeholder = placeholder

    def forward(self, input_ids: Tensor, image_tokens: Tensor, past: int) -> Tensor:
        tokens = embed_with_image(input_ids, image_tokens, self.words, self.placeholder, past)
        # The first positions of the table, as many as its offset, belong to no token.
        return tokens + F.embedding(places(input_ids, past) + self.positions.offset, self.positions.weight)


class OptLayer(nn.Module):
    """Causal self-attention and a feed-forward network, normalised before or, in OPT-350m, after."""

    def __init__(self, layer: Any) -> None:
        super().__init__()
        attention = layer.self_attn
        self.heads = attention.num_heads
        self.qkv = fuse_linears(attention.q_proj, attention.k_proj, attention.v_proj)
        self.attention_output = attention.out_proj
        self.attention_norm = layer.self_attn_layer_norm
        self.intermediate = layer.fc1
        self.activation = layer.activation_fn
        self.output = layer.fc2
        self.feed_forward_norm = layer.final_layer_norm
        self.norms_before = layer.do_layer_norm_before

    def with_cache(self, tokens: Tensor, past: KeyValue) -> tuple[Tensor, KeyValue]:
        """New tokens, causal, after those of the cache; and the longer cache."""
        normed = self.attention_norm(tokens) if self.norms_before else tokens
        query, key, value = self.qkv(normed).chunk(3, -1)
        attended, present = attend_with_cache(query, key, value, past, self.heads)
        tokens = tokens + self.attention_output(attended)
        if not self.norms_before:
            tokens = self.attention_norm(tokens)
        normed = self.feed_forward_norm(tokens) if self.norms_before else tokens
        tokens = tokens + self.output(self.activation(self.intermediate(normed)))
        return tokens if self.norms_before else self.feed_forward_norm(tokens), present
