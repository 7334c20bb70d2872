"""The layer in which two modalities read each other, which every model here is made of."""

from __future__ import annotations

from typing import cast

from torch import Tensor, nn

from xattn_edge.attention import CrossModalAttention, Exchange, KeyValue, MechanismConfig, Tokens
from xattn_edge.encoders import FeedForward

__all__ = ["CrossModalLayer", "masked_mean"]


class CrossModalLayer(nn.Module):
    """A mechanism between pre-normalised modalities; a side that reads adds what it read, then a feed-forward block.

    Args:
        mechanism: how the sides read each other.
        width: of both.
        side: of the feature map that the image tokens are positions of, None where they are frames.
        dropout: probability, in training.
        image_norm: whether the image tokens are normalised, too; without it they are read as they are.
    """

    def __init__(
        self, mechanism: MechanismConfig, width: int, side: int | None, dropout: float, *, image_norm: bool = True
    ) -> None:
        super().__init__()
        self.mechanism = mechanism.build(width, side)
        self.norms = nn.ModuleList((nn.LayerNorm(width), nn.LayerNorm(width) if image_norm else nn.Identity()))
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
        sides = ((text, exchange.text, self.after[0]), (image, exchange.image, self.after[1]))
        new_text, new_image = (
            tokens if read is None else Tokens(self._add(tokens.features, read, after), tokens.mask)
            for tokens, read, after in sides
        )
        return new_text, new_image

    @property
    def attention(self) -> CrossModalAttention:
        """That of a mechanism which projects an image once for every text (`MechanismConfig.projects_once`)."""
        return cast(CrossModalAttention, self.mechanism.attention)

    def project_image(self, features: Tensor) -> KeyValue:
        """Keys and values of image tokens `[batch, tokens, width]`, of which none is padding."""
        normed = self.norms[1](features)
        return self.attention.project(normed, normed)

    def read(self, text: Tensor, image: KeyValue) -> tuple[Tensor, Tensor]:
        """As `forward`, of what `project_image` returned.

        Returns:
            Text tokens `[batch, length, width]` with what they read of the image, and that alone.
        """
        read = self.attention.attend(self.norms[0](text), image, need_weights=False).output
        return self._add(text, read, self.after[0]), read

    def _add(self, features: Tensor, read: Tensor, after: nn.Module) -> Tensor:
        features = features + self.dropout(read)
        return cast(Tensor, features + after(features))


def masked_mean(features: Tensor, mask: Tensor) -> Tensor:
    """Mean of `[batch, tokens, width]` where `mask` `[batch, tokens]` is true; 0 where it is nowhere."""
    shares = mask.to(features.dtype)[:, :, None]
    return (features * shares).sum(1) / shares.sum(1).clamp(min=1)
