"""Encoders: a picture or a text becomes tokens, `[batch, tokens, width]`."""

from xattn_edge.encoders.image import ImageEncoder
from xattn_edge.encoders.text import TEXT_ENCODERS, LstmTextEncoder, TransformerTextEncoder, build_text_encoder
from xattn_edge.encoders.transformer import FeedForward, SelfAttentionLayer

__all__ = [
    "TEXT_ENCODERS",
    "FeedForward",
    "ImageEncoder",
    "LstmTextEncoder",
    "SelfAttentionLayer",
    "TransformerTextEncoder",
    "build_text_encoder",
]
