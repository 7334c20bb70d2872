"""BLIP-2's Q-Former and OPT around a checkpoint's own weights, over flat tensors, with one `Attention` operator each.

The architectures are those of https://arxiv.org/abs/2301.12597 and https://arxiv.org/abs/2205.01068; names are those of
Transformers' modeling_blip_2.py and modeling_opt.py. The image encoder is BLIP's. It knows layers; what is made of them
is in `blip2.py`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from xattn_edge.attention import KeyValue
from xattn_export.families.graph_layers import attend, attend_with_cache, embed_with_image, fuse_linears

if TYPE_CHECKING:
    from transformers.models.blip_2.modeling_blip_2 import Blip2QFormerModel
    from transformers.models.opt.modeling_opt import OPTDecoder

__all__ = ["OptEmbeddings", "OptLayer", "QueryEncoder"]


class QueryEncoder(nn.Module):
    """What learned queries find in an image: tokens `[batch, patches, width]` to `[batch, queries, query_width]`."""

    def __init__(self, model: Blip2QFormerModel, queries: nn.Parameter) -> None:
        super().__init__()
        self.queries = queries
        self.norm = model.layernorm
        self.layers = nn.ModuleList(QueryLayer(layer) for layer in model.encoder.layer)

    def forward(self, image: Tensor) -> Tensor:
        tokens = self.norm(self.queries).expand(image.shape[0], -1, -1)
        for layer in self.layers:
            tokens = layer(tokens, image)
        return cast(Tensor, tokens)


class QueryLayer(nn.Module):
    """Queries attend to each other, and in some layers to the image; a feed-forward network; each normalised after."""

    def __init__(self, layer: Any) -> None:
        super().__init__()
        own = layer.attention
        self.heads = own.attention.num_attention_heads
        self.qkv = fuse_linears(own.attention.query, own.attention.key, own.attention.value)
        self.attention_output = own.output
        self.sees_image = layer.has_cross_attention
        if self.sees_image:
            cross = layer.crossattention
            self.cross_query = cross.attention.query
            self.cross_key_value = fuse_linears(cross.attention.key, cross.attention.value)
            self.cross_output = cross.output
        self.intermediate = layer.intermediate_query
        self.output = layer.output_query

    def forward(self, tokens: Tensor, image: Tensor) -> Tensor:
        query, key, value = self.qkv(tokens).chunk(3, -1)
        tokens = self.attention_output(attend(query, key, value, self.heads), tokens)
        if self.sees_image:
            key, value = self.cross_key_value(image).chunk(2, -1)
            tokens = self.cross_output(attend(self.cross_query(tokens), key, value, self.heads), tokens)
        return cast(Tensor, self.output(self.intermediate(tokens), tokens))


class OptEmbeddings(nn.Module):
    """Tokens after `past` others, those of the image in their places, to vectors with learned positions."""

    def __init__(self, model: OPTDecoder, placeholder: int) -> None:
        super().__init__()
        self.words = model.embed_tokens
        self.positions = model.embed_positions
        self.placeholder = placeholder

    def forward(self, input_ids: Tensor, image_tokens: Tensor, past: int) -> Tensor:
        tokens = embed_with_image(input_ids, image_tokens, self.words, self.placeholder, past)
        # The first positions of the table, as many as its offset, stand for no token.
        places = torch.arange(past, past + input_ids.shape[1], device=input_ids.device) + self.positions.offset
        return tokens + F.embedding(places, self.positions.weight)


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
