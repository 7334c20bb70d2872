"""The two blocks that every Transformer here is made of, in pre-normalised form (Xiong et al., 2020)."""

from __future__ import annotations

from typing import cast

from torch import Tensor, nn

from xattn_edge.attention import MultiHeadAttention

__all__ = ["FeedForward", "SelfAttentionLayer"]


class FeedForward(nn.Sequential):
    """Two linear layers with a GELU between them, four times as wide inside: `[…, width]` to `[…, width]`."""

    def __init__(self, width: int, dropout: float = 0.0) -> None:
        super().__init__(nn.Linear(width, 4 * width), nn.GELU(), nn.Dropout(dropout), nn.Linear(4 * width, width))


class SelfAttentionLayer(nn.Module):
    """A Transformer encoder layer: tokens attend to each other, then a feed-forward block."""

    def __init__(self, width: int, heads: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.attention_norm = nn.LayerNorm(width)
        self.attention = MultiHeadAttention(width, heads)
        self.feed_forward_norm = nn.LayerNorm(width)
        self.feed_forward = FeedForward(width, dropout)
        self.dropout = nn.Dropout(dropout)

    def forward(self, tokens: Tensor, mask: Tensor | None = None) -> Tensor:
        """`tokens` `[batch, tokens, width]`, `mask` as in `MultiHeadAttention.forward`; the same shape comes out."""
        normed = self.attention_norm(tokens)
        context = self.attention.project_context(normed)
        tokens = tokens + self.dropout(self.attention(normed, context, mask))
        return cast(Tensor, tokens + self.dropout(self.feed_forward(self.feed_forward_norm(tokens))))
