"""The blocks that every Transformer here is made of, in pre-normalised form (Xiong et al., 2020)."""

from __future__ import annotations

from collections.abc import Iterable
from typing import cast

from torch import Tensor, nn

from xattn_edge.attention import KeyValue, MultiHeadAttention

__all__ = ["AttentionLayer", "FeedForward", "SelfAttentionLayer", "attend_to_each_other"]


class FeedForward(nn.Sequential):
    """Two linear layers with a GELU between them, four times as wide inside: `[…, width]` to `[…, width]`."""

    def __init__(self, width: int, dropout: float = 0.0) -> None:
        super().__init__(nn.Linear(width, 4 * width), nn.GELU(), nn.Dropout(dropout), nn.Linear(4 * width, width))


class AttentionLayer(nn.Module):
    """What self-attention and cross-attention layers share: attention, then a feed-forward block, both residual."""

    def __init__(self, width: int, heads: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.attention_norm = nn.LayerNorm(width)
        self.attention = MultiHeadAttention(width, heads)
        self.feed_forward_norm = nn.LayerNorm(width)
        self.feed_forward = FeedForward(width, dropout)
        self.dropout = nn.Dropout(dropout)

    def attend(self, tokens: Tensor, normed: Tensor, context: KeyValue, mask: Tensor | None = None) -> Tensor:
        """`tokens` `[batch, length, width]`, whose `attention_norm` is `normed`; the same shape comes out."""
        tokens = tokens + self.dropout(self.attention(normed, context, mask))
        return cast(Tensor, tokens + self.dropout(self.feed_forward(self.feed_forward_norm(tokens))))


class SelfAttentionLayer(AttentionLayer):
    """A Transformer encoder layer: tokens attend to each other, then a feed-forward block."""

    def forward(self, tokens: Tensor, mask: Tensor | None = None) -> Tensor:
        """`tokens` `[batch, tokens, width]`, `mask` as in `MultiHeadAttention.forward`; the same shape comes out."""
        normed = self.attention_norm(tokens)
        return self.attend(tokens, normed, self.attention.project_context(normed), mask)


def attend_to_each_other(layers: Iterable[nn.Module], features: Tensor, mask: Tensor) -> Tensor:
    """`features` `[batch, tokens, width]` through self-attention layers, without the padding of `mask`."""
    batch, tokens, _ = features.shape
    allowed = mask[:, None, None, :].expand(batch, 1, tokens, tokens)
    for layer in layers:
        features = layer(features, allowed)
    return features
