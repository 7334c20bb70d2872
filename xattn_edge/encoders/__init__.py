"""Encoders: an image, a text, speech or a video becomes tokens, `[batch, tokens, width]` and a mask."""

from xattn_edge.encoders.configs import (
    IMAGE_ENCODERS,
    TEXT_ENCODERS,
    ImageEncoderConfig,
    SpeechEncoderConfig,
    TextEncoderConfig,
    VideoEncoderConfig,
)
from xattn_edge.encoders.image import CnnEncoder
from xattn_edge.encoders.patches import PatchEncoder
from xattn_edge.encoders.speech import SpeechEncoder
from xattn_edge.encoders.text import LstmTextEncoder, TransformerTextEncoder
from xattn_edge.encoders.transformer import FeedForward, SelfAttentionLayer
from xattn_edge.encoders.video import VideoEncoder

__all__ = [
    "IMAGE_ENCODERS",
    "TEXT_ENCODERS",
    "CnnEncoder",
    "FeedForward",
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
]
