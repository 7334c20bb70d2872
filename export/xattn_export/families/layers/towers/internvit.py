"""InternVL's tower, InternViT: layers whose two halves are scaled, with queries and keys that may be normalised.

https://arxiv.org/abs/2312.14238; names are those of Transformers' modeling_internvl.py.
"""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor, nn

from xattn_export.families.layers.common import RmsNorm, attend, for_each_image, fuse_linears
from xattn_export.families.layers.towers.tower import Features, Tower

__all__ = ["internvit_tower"]


class InternVitEmbeddings(nn.Module):
    """Images to a class token and patches, with positions where there are some."""

    def __init__(self, embeddings: Any) -> None:
        super().__init__()
        self.patches = embeddings.patch_embeddings.projection
        self.first = embeddings.cls_token
        self.positions = embeddings.position_embeddings

    def forward(self, pixel_values: Tensor) -> Tensor:
        patches = self.patches(pixel_values).flatten(2).transpose(1, 2)
        tokens = torch.cat((for_each_image(self.first, patches), patches), 1)
        return tokens if self.positions is None else tokens + self.positions


class InternVitLayer(nn.Module):
    """Attention, then a feed-forward network, each on normalised tokens, and each scaled feature by feature."""

    def __init__(self, layer: Any) -> None:
        super().__init__()
        attention = layer.attention
        self.heads, self.scale = int(attention.num_heads), float(attention.scale)
        self.qkv = fuse_linears(attention.q_proj, attention.k_proj, attention.v_proj)
        self.query_norm, self.key_norm = _norm(attention.q_norm), _norm(attention.k_norm)
        self.attention_output = attention.projection_layer
        self.attention_norm, self.attention_scale = _norm(layer.layernorm_before), layer.lambda_1
        self.feed_forward = layer.mlp
        self.feed_forward_norm, self.feed_forward_scale = _norm(layer.layernorm_after), layer.lambda_2

    def forward(self, tokens: Tensor) -> Tensor:
        query, key, value = self.qkv(self.attention_norm(tokens)).chunk(3, -1)
        attended = attend(self.query_norm(query), self.key_norm(key), value, self.heads, scale=self.scale)
        tokens = tokens + self.attention_output(attended) * self.attention_scale
        found = self.feed_forward(self.feed_forward_norm(tokens))
        return cast(Tensor, tokens + found * self.feed_forward_scale)


def internvit_tower(vision: Any, side_px: int, features: Features) -> nn.Module:
    """The tower of an `InternVLVisionModel`, whose images have the size of its configuration."""
    layers = (InternVitLayer(layer) for layer in vision.encoder.layer)
    embeddings = InternVitEmbeddings(vision.embeddings)
    return Tower(embeddings, layers, vision.layernorm, features)


def _norm(norm: Any) -> nn.Module:
    """Norms are of two kinds here, or none at all."""
    return RmsNorm(norm) if hasattr(norm, "variance_epsilon") else cast(nn.Module, norm)
