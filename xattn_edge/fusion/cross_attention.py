"""One modality takes in another by attending to it."""

from __future__ import annotations

from torch import Tensor

from xattn_edge.attention import KeyValue
from xattn_edge.encoders.transformer import AttentionLayer

__all__ = ["CrossAttentionLayer"]


class CrossAttentionLayer(AttentionLayer):
    """Tokens of one modality attend to the projected tokens of another, then a feed-forward block."""

    def project_context(self, context: Tensor) -> KeyValue:
        """Cross-attention keys and values of `context` `[batch, tokens, width]`: once, for any number of queries."""
        return self.attention.project_context(context)

    def forward(self, tokens: Tensor, context: KeyValue) -> Tensor:
        """`tokens` `[batch, length, width]`; the same shape comes out."""
        return self.attend(tokens, self.attention_norm(tokens), context)
