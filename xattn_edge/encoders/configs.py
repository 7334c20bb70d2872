"""Encoders of pictures, texts, speech and video: typed, frozen, and built from it."""

from __future__ import annotations

from dataclasses import dataclass

from xattn_edge.encoders.image import ImageEncoder, check_feature_map
from xattn_edge.encoders.patches import PatchEncoder
from xattn_edge.encoders.speech import SpeechEncoder
from xattn_edge.encoders.text import TEXT_ENCODERS, LstmTextEncoder, TransformerTextEncoder, build_text_encoder
from xattn_edge.encoders.video import VideoEncoder

__all__ = ["IMAGE_ENCODERS", "ImageEncoderConfig", "SpeechEncoderConfig", "TextEncoderConfig", "VideoEncoderConfig"]

IMAGE_ENCODERS = ("cnn", "patches")
"""Names of the encoders of pictures."""


@dataclass(frozen=True, kw_only=True)
class ImageEncoderConfig:
    """An encoder of square pictures.

    name: `cnn`, the positions of a feature map, or `patches`.
    image_size_px: side of the picture.
    channels, blocks: of the feature map of a `cnn`, as for `ImageEncoder`.
    patch_px: side of one of the `patches`.
    layers, heads: of self-attention over the tokens.

    Raises:
        ValueError: an unknown name, numbers of the other encoder, or ones that do not fit; says which and why.
    """

    name: str
    image_size_px: int
    channels: tuple[int, ...] = ()
    blocks: tuple[int, ...] = ()
    patch_px: int | None = None
    layers: int = 0
    heads: int = 1

    def __post_init__(self) -> None:
        if self.name not in IMAGE_ENCODERS:
            raise ValueError(f"image encoder: expected one of {', '.join(IMAGE_ENCODERS)}, found {self.name!r}")
        if (self.patch_px is not None, bool(self.channels or self.blocks)) != (
            self.name == "patches",
            self.name == "cnn",
        ):
            raise ValueError(
                f"image encoder: expected channels and blocks of a cnn, or patch_px of patches, found channels "
                f"{self.channels}, blocks {self.blocks} and patch_px {self.patch_px} of {self.name}"
            )
        if self.patch_px is None:
            check_feature_map(self.image_size_px, self.channels, self.blocks)
        elif self.patch_px < 1 or self.image_size_px % self.patch_px:
            raise ValueError(f"patch_px: expected a divisor of {self.image_size_px} px, found {self.patch_px}")

    @property
    def side(self) -> int:
        """Positions along each side of the picture."""
        return self.image_size_px // (self.patch_px or 1 << len(self.channels))

    def build(self, width: int) -> ImageEncoder | PatchEncoder:
        """The encoder to tokens of `width`, with random weights."""
        if self.patch_px is not None:
            return PatchEncoder(self.image_size_px, self.patch_px, width, self.layers, self.heads)
        return ImageEncoder(self.image_size_px, self.channels, self.blocks, width, self.layers, self.heads)


@dataclass(frozen=True, kw_only=True)
class TextEncoderConfig:
    """An encoder of texts.

    name: one of `TEXT_ENCODERS`.
    vocabulary: number of token ids. max_tokens: of the longest text.
    layers, heads: of self-attention, of `transformer` alone.

    Raises:
        ValueError: an unknown name, or self-attention of an LSTM.
    """

    name: str
    vocabulary: int
    max_tokens: int
    layers: int = 0
    heads: int = 1

    def __post_init__(self) -> None:
        if self.name not in TEXT_ENCODERS:
            raise ValueError(f"text encoder: expected one of {', '.join(TEXT_ENCODERS)}, found {self.name!r}")
        if self.name == "lstm" and self.layers:
            raise ValueError(f"text encoder: expected no layers of self-attention in an lstm, found {self.layers}")

    def build(self, width: int, dropout: float) -> LstmTextEncoder | TransformerTextEncoder:
        """The encoder to tokens of `width`, with random weights."""
        return build_text_encoder(self.name, self.vocabulary, width, self.max_tokens, self.layers, self.heads, dropout)


@dataclass(frozen=True, kw_only=True)
class SpeechEncoderConfig:
    """An encoder of log-mel spectrograms.

    bands: of the spectrogram, a multiple of 4. longest: most frames. channels: of the convolutions.
    layers, heads: of self-attention over time.
    """

    bands: int
    longest: int
    channels: int
    layers: int = 1
    heads: int = 1

    def build(self, width: int, dropout: float) -> SpeechEncoder:
        """The encoder to tokens of `width`, with random weights."""
        return SpeechEncoder(self.bands, self.longest, self.channels, width, self.layers, self.heads, dropout)


@dataclass(frozen=True, kw_only=True)
class VideoEncoderConfig:
    """An encoder of frames. picture: of one frame. longest: most frames. layers, heads: of self-attention over time."""

    picture: ImageEncoderConfig
    longest: int
    layers: int = 1
    heads: int = 1

    def build(self, width: int, dropout: float) -> VideoEncoder:
        """The encoder to tokens of `width`, with random weights."""
        return VideoEncoder(self.picture.build(width), self.longest, width, self.layers, self.heads, dropout)
