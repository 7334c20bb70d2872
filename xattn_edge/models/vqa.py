"""Visual question answering by text-to-image cross-attention."""

from __future__ import annotations

from typing import cast

from torch import Tensor, nn

from xattn_edge.attention import KeyValue
from xattn_edge.encoders import build_text_encoder
from xattn_edge.fusion import CrossAttentionLayer
from xattn_edge.models.config import VqaConfig

__all__ = ["VqaModel"]


class VqaModel(nn.Module):
    """The words of a question attend to the picture; their mean is classified into an answer.

    `encode_image` runs once a picture, `answer` once a question.
    """

    def __init__(self, config: VqaConfig) -> None:
        super().__init__()
        self.config = config
        self.image_encoder = config.build_image_encoder()
        self.text_encoder = build_text_encoder(
            config.text_encoder,
            config.vocabulary,
            config.width,
            config.max_tokens,
            config.text_layers,
            config.heads,
            config.dropout,
        )
        self.cross_layers = nn.ModuleList(
            CrossAttentionLayer(config.width, config.heads, config.dropout) for _ in range(config.cross_layers)
        )
        self.norm = nn.LayerNorm(config.width)
        self.classifier = nn.Linear(config.width, len(config.answers))

    def encode_image(self, pixel_values: Tensor) -> list[KeyValue]:
        """Cross-attention keys and values of each layer for `pixel_values` `[batch, 3, side, side]`."""
        tokens = self.image_encoder(pixel_values).features
        return [cast(CrossAttentionLayer, layer).project_context(tokens) for layer in self.cross_layers]

    def answer(self, input_ids: Tensor, attention_mask: Tensor, cross: list[KeyValue]) -> Tensor:
        """Logits `[batch, answers]` of questions, int64 `[batch, length]`, padded on the right."""
        tokens = self.text_encoder(input_ids, attention_mask).features
        for layer, context in zip(self.cross_layers, cross, strict=True):
            tokens = layer(tokens, context)
        weights = attention_mask.to(tokens.dtype)[:, :, None]
        pooled = (self.norm(tokens) * weights).sum(1) / weights.sum(1)
        return cast(Tensor, self.classifier(pooled))

    def forward(self, pixel_values: Tensor, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Logits `[batch, answers]`."""
        return self.answer(input_ids, attention_mask, self.encode_image(pixel_values))
