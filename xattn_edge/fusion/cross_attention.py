"""One modality takes in another by attending to it."""

from __future__ import annotations

from typing import cast

from torch import Tensor, nn

from xattn_edge.attention import KeyValue, MultiHeadAttention
from xattn_edge.encoders.transformer import FeedForward

__all__ = ["CrossAttentionLayer"]


class CrossAttentionLayer(nn.Module):
    """Tokens of one modality attend to the projected tokens of another, then a feed-forward block."""

    def __init__(self, width: int, heads: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.attention_norm = nn.LayerNorm(width)
        self.attention = MultiHeadAttention(width, heads)
        self.feed_forward_norm = nn.LayerNorm(width)
        self.feed_forward = FeedForward(width, dropout)
        self.dropout = nn.Dropout(dropout)

    def project_context(self, context: Tensor) -> KeyValue:
        """Cross-attention keys and values of `context` `[batch, tokens, width]`: once, for any number of queries."""
        return self.attention.project_context(context)

    def forward(self, tokens: Tensor, context: KeyValue) -> Tensor:
        """`tokens` `[batch, length, width]`; the same shape comes out."""
        tokens = tokens + self.dropout(self.attention(self.attention_norm(tokens), context))
        return cast(Tensor, tokens + self.dropout(self.feed_forward(self.feed_forward_norm(tokens))))
