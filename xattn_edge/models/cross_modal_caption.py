"""Captioning by any similarity, weighting and fusion: the model of a `CrossModalCaptionConfig`."""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn

from xattn_edge.attention import CrossModalAttention, KeyValue, MultiHeadAttention
from xattn_edge.encoders import FeedForward
from xattn_edge.fusion import Fused
from xattn_edge.models.caption import Captioner
from xattn_edge.models.cross_modal_config import CrossModalCaptionConfig

__all__ = ["CrossModalCaptionModel", "CrossModalDecoderLayer"]


class CrossModalDecoderLayer(nn.Module):
    """Causal self-attention with a KV cache; then every token reads the picture, and a feed-forward block."""

    def __init__(self, config: CrossModalCaptionConfig) -> None:
        super().__init__()
        width = config.width
        self.self_attention_norm = nn.LayerNorm(width)
        self.self_attention = MultiHeadAttention(width, config.heads)
        self.read_norm = nn.LayerNorm(width)
        self.read = CrossModalAttention(width, width, width, config.mechanism.options)
        self.after = nn.Sequential(nn.LayerNorm(width), FeedForward(width, config.dropout), nn.Dropout(config.dropout))
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, tokens: Tensor, past: KeyValue, cross: KeyValue, mask: Tensor) -> tuple[Tensor, Tensor, KeyValue]:
        """`tokens` `[batch, length, width]` after `past`; returns tokens, what they read, and the longer cache."""
        normed = self.self_attention_norm(tokens)
        new = self.self_attention.project_context(normed)
        present = KeyValue(torch.cat((past.key, new.key), 2), torch.cat((past.value, new.value), 2))
        attended = self.self_attention(normed, present, mask)
        return *self.look(tokens + self.dropout(attended), cross), present

    def look(self, tokens: Tensor, cross: KeyValue) -> tuple[Tensor, Tensor]:
        """Tokens with what they read of the picture, and that alone; both `[batch, length, width]`."""
        found = self.read.attend(self.read_norm(tokens), cross, need_weights=False).output
        tokens = tokens + self.dropout(found)
        return tokens + self.after(tokens), found


class CrossModalCaptionModel(Captioner):
    """What has been said and what the last layer saw are two modalities, fused to the next word."""

    config: CrossModalCaptionConfig

    def __init__(self, config: CrossModalCaptionConfig) -> None:
        super().__init__(config, config.image.build(config.width))
        self.layers = nn.ModuleList(CrossModalDecoderLayer(config) for _ in range(config.layers))
        self.text_norm, self.image_norm = nn.LayerNorm(config.width), nn.LayerNorm(config.width)
        self.head = config.fusion.build((config.width, config.width), config.vocabulary)
        nn.init.normal_(self.embedding.weight, std=0.02)

    def project_image(self, tokens: Tensor) -> list[KeyValue]:
        """As `Captioner.project_image`."""
        return [cast(CrossModalDecoderLayer, layer).read.project_context(tokens) for layer in self.layers]

    def decode(self, input_ids: Tensor, past: list[KeyValue], cross: list[KeyValue]) -> tuple[Tensor, list[KeyValue]]:
        """As `Captioner.decode`."""
        tokens, mask = self.embed(input_ids, past[0].key.shape[2])
        seen, present = tokens, []
        for layer, layer_past, layer_cross in zip(self.layers, past, cross, strict=True):
            tokens, seen, layer_present = layer(tokens, layer_past, layer_cross, mask)
            present.append(layer_present)
        logits = self.decide(tokens.flatten(0, 1), seen.flatten(0, 1))
        return logits.view(*tokens.shape[:2], -1), present

    def decide(self, said: Tensor, seen: Tensor) -> Tensor:
        """Logits `[rows, vocabulary]` of the words after what was said and seen, both `[rows, width]`."""
        return cast(Fused, self.head([self.text_norm(said), self.image_norm(seen)])).output
