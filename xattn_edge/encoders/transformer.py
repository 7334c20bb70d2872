"""The blocks that every Transformer here is made of, in pre-normalised form (Xiong et al., 2020)."""

from __future__ import annotations

from collections.abc import Iterable
from typing import cast

from torch import Tensor, nn

from xattn_edge.attention import CrossModalAttention, transformer_options

__all__ = ["FeedForward", "SelfAttentionLayer", "attend_to_each_other"]


class FeedForward(nn.Sequential):
    """Two linear layers with a GELU between them, four times as wide inside: `[…, width]` to `[…, width]`."""

    def __init__(self, width: int, dropout: float = 0.0) -> None:
        super().__init__(nn.Linear(width, 4 * width), nn.GELU(), nn.Dropout(dropout), nn.Linear(4 * width, width))


class SelfAttentionLayer(nn.Module):
    """A Transformer encoder layer: tokens attend to each other, then a feed-forward block, both residual."""

    def __init__(self, width: int, heads: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.attention_norm = nn.LayerNorm(width)
        self.attention = CrossModalAttention(width, width, width, transformer_options(heads))
        self.feed_forward_norm = nn.LayerNorm(width)
        self.feed_forward = FeedForward(width, dropout)
        self.dropout = nn.Dropout(dropout)

    def forward(self, tokens: Tensor, mask: Tensor | None = None) -> Tensor:
        """`tokens` `[batch, tokens, width]` to the same shape; `mask` as in `CrossModalAttention.attend`."""
        normed = self.attention_norm(tokens)
        context = self.attention.project(normed, normed)
        tokens = tokens + self.dropout(self.attention.attend(normed, context, mask, need_weights=False).output)
        return cast(Tensor, tokens + self.dropout(self.feed_forward(self.feed_forward_norm(tokens))))


def attend_to_each_other(layers: Iterable[nn.Module], features: Tensor, mask: Tensor) -> Tensor:
    """`features` `[batch, tokens, width]` through self-attention layers, without the padding of `mask`."""
    batch, tokens, _ = features.shape
    allowed = mask[:, None, None, :].expand(batch, 1, tokens, tokens)
    for layer in layers:
        features = layer(features, allowed)
    return features
