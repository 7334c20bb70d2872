"""Visual question answering and captioning as a combination: mechanism × fusion × encoders, typed and frozen."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from xattn_edge.attention import MechanismConfig
from xattn_edge.encoders.configs import ImageEncoderConfig, TextEncoderConfig
from xattn_edge.fusion import FusionConfig

__all__ = ["CrossModalCaptionConfig", "CrossModalVqaConfig", "check_heads"]


@dataclass(frozen=True, kw_only=True)
class CrossModalVqaConfig:
    """Questions about pictures, answered from a list.

    image, text: the encoders. mechanism: how both read each other. layers: how often, each time with weights of its
        own. fusion: how what both have read becomes an answer. width: of all tokens. answers: the list.

    Raises:
        ValueError: parts that do not go together; says which and why.
    """

    image: ImageEncoderConfig
    text: TextEncoderConfig
    mechanism: MechanismConfig
    fusion: FusionConfig
    layers: int
    width: int
    dropout: float
    answers: tuple[str, ...]

    def __post_init__(self) -> None:
        heads = {
            "mechanism": self.mechanism.options.heads,
            "image encoder": self.image.heads,
            "text encoder": self.text.heads,
        }
        check_heads(self.width, heads)
        if self.text.name == "lstm" and self.width % 2:
            raise ValueError(f"width: expected an even one, half for each direction of the lstm, found {self.width}")
        if self.layers < 1:
            raise ValueError(f"layers: expected at least 1, found {self.layers}")
        if len(self.answers) < 2:
            raise ValueError(f"answers: expected at least 2 to choose among, found {len(self.answers)}")
        if self.mechanism.name == "hierarchical" and self.image.side % self.mechanism.window:
            raise ValueError(
                f"mechanism: window: expected a divisor of a side of {self.image.side} positions, which regions must "
                f"fill, found {self.mechanism.window}"
            )
        _check_two_weights(self.fusion)


@dataclass(frozen=True, kw_only=True)
class CrossModalCaptionConfig:
    """Pictures described word by word.

    image: the encoder. mechanism: how a word reads the picture; its heads are also those of self-attention. layers: of
        the decoder, each with weights of its own. fusion: how what has been said and what has been seen become the next
        word. width: of all tokens. vocabulary: number of token ids. max_tokens: positions of the decoder, the start
        token among them.

    Raises:
        ValueError: parts that do not go together; says which and why.
    """

    image: ImageEncoderConfig
    mechanism: MechanismConfig
    fusion: FusionConfig
    layers: int
    width: int
    dropout: float
    vocabulary: int
    max_tokens: int
    pad_token_id: int
    start_token_id: int
    end_token_id: int

    def __post_init__(self) -> None:
        if self.mechanism.name != "text_to_image":
            raise ValueError(
                f"mechanism: expected text_to_image, as a caption grows word by word and the picture is read once "
                f"before it, found {self.mechanism.name}, whose picture or words would read words that are yet to come"
            )
        check_heads(self.width, {"mechanism": self.heads, "image encoder": self.image.heads})
        if self.layers < 1:
            raise ValueError(f"layers: expected at least 1, found {self.layers}")
        _check_two_weights(self.fusion)

    @property
    def heads(self) -> int:
        """Of every attention in the decoder."""
        return self.mechanism.options.heads

    @property
    def image_size_px(self) -> int:
        """Side of the picture."""
        return self.image.image_size_px


def check_heads(width: int, heads: Mapping[str, int]) -> None:
    """Refuse the first of `heads`, by the part that has them, that does not divide `width`; ValueError says which."""
    for part, number in heads.items():
        if number < 1 or width % number:
            raise ValueError(f"{part}: heads: expected a divisor of the width {width}, found {number}")


def _check_two_weights(fusion: FusionConfig) -> None:
    if fusion.weights is not None and len(fusion.weights) != 2:
        raise ValueError(f"fusion: weights: expected 2, of text and image, found {len(fusion.weights)}")
