"""Attention over one or two modalities."""

from xattn_edge.attention.multi_head import KeyValue, MultiHeadAttention, causal_mask

__all__ = ["KeyValue", "MultiHeadAttention", "causal_mask"]
