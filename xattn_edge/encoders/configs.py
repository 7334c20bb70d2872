"""Encoders of images, texts, speech and video: typed, frozen, and built from it."""

from __future__ import annotations

from dataclasses import dataclass

from xattn_edge.encoders.image import CnnEncoder, check_feature_map
from xattn_edge.encoders.patches import PatchEncoder, check_patches
from xattn_edge.encoders.speech import SpeechEncoder
from xattn_edge.encoders.text import LstmTextEncoder, TransformerTextEncoder
from xattn_edge.encoders.video import VideoEncoder

__all__ = [
    "IMAGE_ENCODERS",
    "TEXT_ENCODERS",
    "ImageEncoderConfig",
    "SpeechEncoderConfig",
    "TextEncoderConfig",
    "VideoEncoderConfig",
]

IMAGE_ENCODERS = ("cnn", "patches")
"""Names of the encoders of images."""
TEXT_ENCODERS = ("lstm", "transformer")
"""Names of the encoders of texts."""


@dataclass(frozen=True, kw_only=True)
class ImageEncoderConfig:
    """An encoder of square images.

    name: `cnn`, the positions of a feature map, or `patches`.
    image_size_px: side of the image.
    channels, blocks: of the feature map of a `cnn`, as for `CnnEncoder`.
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
        else:
            check_patches(self.image_size_px, self.patch_px)

    @property
    def side(self) -> int:
        """Positions along each side of the image."""
        return self.image_size_px // (self.patch_px or 1 << len(self.channels))

    def build(self, width: int) -> CnnEncoder | PatchEncoder:
        """The encoder to tokens of `width`, with random weights."""
        if self.patch_px is not None:
            return PatchEncoder(self.image_size_px, self.patch_px, width, self.layers, self.heads)
        return CnnEncoder(self.image_size_px, self.channels, self.blocks, width, self.layers, self.heads)


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

    def check_width(self, width: int) -> None:
        """Check that its tokens can be `width` wide.

        Raises:
            ValueError: an LSTM of two directions, and an odd width.
        """
        if self.name == "lstm" and width % 2:
            raise ValueError(f"width: expected an even one, half for each direction of the lstm, found {width}")

    def build(self, width: int, dropout: float) -> LstmTextEncoder | TransformerTextEncoder:
        """The encoder to tokens of `width`, with random weights; `dropout` is of a `transformer`."""
        if self.name == "lstm":
            return LstmTextEncoder(self.vocabulary, width)
        return TransformerTextEncoder(self.vocabulary, width, self.max_tokens, self.layers, self.heads, dropout)


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
    """An encoder of frames. image: of one frame. longest: most frames. layers, heads: of self-attention over time."""

    image: ImageEncoderConfig
    longest: int
    layers: int = 1
    heads: int = 1

    def build(self, width: int, dropout: float) -> VideoEncoder:
        """The encoder to tokens of `width`, with random weights."""
        return VideoEncoder(self.image.build(width), self.longest, width, self.layers, self.heads, dropout)
