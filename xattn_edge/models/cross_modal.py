"""Visual question answering by any mechanism and any fusion: the model of a `CrossModalVqaConfig`."""

from __future__ import annotations

from typing import cast

from torch import Tensor, nn

from xattn_edge.attention import Exchange, MechanismConfig, Tokens
from xattn_edge.encoders import FeedForward
from xattn_edge.fusion import Fused
from xattn_edge.models.cross_modal_config import CrossModalVqaConfig

__all__ = ["CrossModalLayer", "CrossModalVqaModel", "masked_mean"]


class CrossModalLayer(nn.Module):
    """A mechanism between pre-normalised modalities; a side that reads adds what it read, then a feed-forward block.

    Args:
        mechanism: how the sides read each other.
        width: of both.
        side: of the feature map that the image tokens are positions of, None where they are frames.
        dropout: probability, in training.
    """

    def __init__(self, mechanism: MechanismConfig, width: int, side: int | None, dropout: float) -> None:
        super().__init__()
        self.mechanism = mechanism.build(width, side)
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(2))
        self.dropout = nn.Dropout(dropout)
        self.after = nn.ModuleList(
            nn.Sequential(nn.LayerNorm(width), FeedForward(width, dropout), nn.Dropout(dropout))
            if reads
            else nn.Identity()
            for reads in mechanism.reads
        )

    def forward(self, text: Tokens, image: Tokens) -> tuple[Tokens, Tokens]:
        """Tokens of both sides, with what they read; a side that reads nothing passes through."""
        normed = [Tokens(norm(each.features), each.mask) for norm, each in zip(self.norms, (text, image), strict=True)]
        exchange = cast(Exchange, self.mechanism(*normed, need_weights=False))
        return (
            self._take_in(text, exchange.text, self.after[0]),
            self._take_in(image, exchange.image, self.after[1]),
        )

    def _take_in(self, tokens: Tokens, read: Tensor | None, after: nn.Module) -> Tokens:
        if read is None:
            return tokens
        features = tokens.features + self.dropout(read)
        return Tokens(features + after(features), tokens.mask)


class CrossModalVqaModel(nn.Module):
    """Question and picture read each other; the mean of each side is a modality, and both are fused to an answer.

    `encode_image` runs once a picture, `answer` once a question.
    """

    def __init__(self, config: CrossModalVqaConfig) -> None:
        super().__init__()
        self.config = config
        self.image_encoder = config.image.build(config.width)
        self.text_encoder = config.text.build(config.width, config.dropout)
        self.layers = nn.ModuleList(
            CrossModalLayer(config.mechanism, config.width, config.image.side, config.dropout)
            for _ in range(config.layers)
        )
        self.text_norm, self.image_norm = nn.LayerNorm(config.width), nn.LayerNorm(config.width)
        self.head = config.fusion.build((config.width, config.width), len(config.answers))

    def encode_image(self, pixel_values: Tensor) -> Tokens:
        """Image tokens of `pixel_values` `[batch, 3, side, side]`."""
        return cast(Tokens, self.image_encoder(pixel_values))

    def answer(self, input_ids: Tensor, attention_mask: Tensor, image: Tokens) -> Tensor:
        """Logits `[batch, answers]` of questions, int64 `[batch, length]`, padded on the right."""
        return self.decide(self.text_encoder(input_ids, attention_mask), image)

    def decide(self, text: Tokens, image: Tokens) -> Tensor:
        """The same for text tokens."""
        for layer in self.layers:
            text, image = layer(text, image)
        text_mean = masked_mean(self.text_norm(text.features), text.mask)
        image_mean = masked_mean(self.image_norm(image.features), image.mask)
        return cast(Fused, self.head([text_mean, image_mean])).output

    def forward(self, pixel_values: Tensor, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Logits `[batch, answers]`."""
        return self.answer(input_ids, attention_mask, self.encode_image(pixel_values))


def masked_mean(features: Tensor, mask: Tensor) -> Tensor:
    """Mean of `[batch, tokens, width]` where `mask` `[batch, tokens]` is true; 0 where it is nowhere."""
    shares = mask.to(features.dtype)[:, :, None]
    return (features * shares).sum(1) / shares.sum(1).clamp(min=1)
