"""BLIP's image encoder, which BLIP-2 has too, around a checkpoint's own weights, over flat tensors.

The architecture is that of https://arxiv.org/abs/2201.12086; names are those of Transformers' modeling_blip.py.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn

from xattn_export.families.layers.common import attend, for_each_image

if TYPE_CHECKING:
    from transformers.models.blip.modeling_blip import BlipVisionModel

__all__ = ["BlipVisionEncoder"]


class BlipVisionEncoder(nn.Module):
    """Image `[batch, 3, height, width]` to image tokens `[batch, 1 + patches, width]`, normalised."""

    def __init__(self, model: BlipVisionModel) -> None:
        super().__init__()
        self.embeddings = model.embeddings
        self.layers = nn.ModuleList(BlipVisionLayer(layer) for layer in model.encoder.layers)
        self.norm = model.post_layernorm

    def forward(self, pixel_values: Tensor) -> Tensor:
        embeddings = self.embeddings
        patches = embeddings.patch_embedding(pixel_values).flatten(2).transpose(1, 2)
        first = for_each_image(embeddings.class_embedding, patches)
        tokens = torch.cat((first, patches), 1) + embeddings.position_embedding
        for layer in self.layers:
            tokens = layer(tokens)
        return cast(Tensor, self.norm(tokens))


class BlipVisionLayer(nn.Module):
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
