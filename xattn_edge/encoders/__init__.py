"""Encoders: a picture, a text, speech or a video becomes tokens, `[batch, tokens, width]` and a mask."""

from xattn_edge.encoders.configs import (
    IMAGE_ENCODERS,
    ImageEncoderConfig,
    SpeechEncoderConfig,
    TextEncoderConfig,
    VideoEncoderConfig,
)
from xattn_edge.encoders.image import ImageEncoder
from xattn_edge.encoders.patches import PatchEncoder
from xattn_edge.encoders.speech import SpeechEncoder
from xattn_edge.encoders.text import TEXT_ENCODERS, LstmTextEncoder, TransformerTextEncoder, build_text_encoder
from xattn_edge.encoders.transformer import FeedForward, SelfAttentionLayer
from xattn_edge.encoders.video import VideoEncoder

__all__ = [
    "IMAGE_ENCODERS",
    "TEXT_ENCODERS",
    "FeedForward",
    "ImageEncoder",
    "ImageEncoderConfig",
    "LstmTextEncoder",
    "PatchEncoder",
    "SelfAttentionLayer",
    "SpeechEncoder",
    "SpeechEncoderConfig",
    "TextEncoderConfig",
    "TransformerTextEncoder",
    "VideoEncoder",
    "VideoEncoderConfig",
    "build_text_encoder",
]
