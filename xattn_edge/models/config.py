"""What a model is made of: typed, frozen, saved with its checkpoint as JSON."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, get_type_hints

from xattn_edge.encoders import TEXT_ENCODERS, ImageEncoder
from xattn_edge.encoders.image import check_feature_map
from xattn_edge.models.cross_modal_config import CrossModalCaptionConfig, CrossModalVqaConfig
from xattn_edge.models.retrieval import RetrievalConfig
from xattn_edge.models.sentiment import SentimentConfig

__all__ = ["CaptionConfig", "ModelConfig", "VqaConfig", "config_from_dict"]


@dataclass(frozen=True, kw_only=True)
class _ImageConfig:
    """What both tasks share: the image encoder and the width of everything after it."""

    image_size_px: int
    channels: tuple[int, ...]
    blocks: tuple[int, ...]
    image_layers: int
    width: int
    heads: int
    dropout: float
    vocabulary: int
    max_tokens: int

    def __post_init__(self) -> None:
        if self.width % self.heads:
            raise ValueError(f"heads: {self.heads} do not divide width {self.width}")
        check_feature_map(self.image_size_px, self.channels, self.blocks)

    @property
    def stride(self) -> int:
        """Pixels of the picture per position of the feature map, along each side."""
        return 1 << len(self.channels)

    def build_image_encoder(self) -> ImageEncoder:
        """The image encoder of this size, with random weights."""
        return ImageEncoder(self.image_size_px, self.channels, self.blocks, self.width, self.image_layers, self.heads)

    @property
    def image_tokens(self) -> int:
        """Positions of the feature map."""
        return (self.image_size_px // self.stride) ** 2


@dataclass(frozen=True, kw_only=True)
class VqaConfig(_ImageConfig):
    """Visual question answering: text-to-image cross-attention, classifier over the answers."""

    text_encoder: str
    text_layers: int
    cross_layers: int
    answers: tuple[str, ...]

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.text_encoder not in TEXT_ENCODERS:
            raise ValueError(f"text_encoder: {self.text_encoder!r} is not one of {', '.join(TEXT_ENCODERS)}")


@dataclass(frozen=True, kw_only=True)
class CaptionConfig(_ImageConfig):
    """Captioning: a Transformer decoder with cross-attention over the image tokens.

    `max_tokens` counts the positions of the decoder, the start token among them.
    """

    decoder_layers: int
    pad_token_id: int
    start_token_id: int
    end_token_id: int


ModelConfig = (
    VqaConfig | CaptionConfig | CrossModalVqaConfig | CrossModalCaptionConfig | RetrievalConfig | SentimentConfig
)


def config_from_dict(task: str, values: Mapping[str, Any]) -> ModelConfig:
    """The configuration of `task` from its JSON form.

    Raises:
        ValueError: an unknown task, a missing, unknown or impossible value.
    """
    combined = "mechanism" in values
    kinds: dict[str, type[ModelConfig]] = {
        "vqa": CrossModalVqaConfig if combined else VqaConfig,
        "caption": CrossModalCaptionConfig if combined else CaptionConfig,
        "retrieval": RetrievalConfig,
        "sentiment": SentimentConfig,
    }
    if task not in kinds:
        raise ValueError(f"task: {task!r} is not one of {', '.join(kinds)}")
    config: ModelConfig = _from_dict(kinds[task], values)
    return config


def _from_dict(kind: type[Any], values: Mapping[str, Any]) -> Any:
    """A frozen dataclass, and those in it, from what `dataclasses.asdict` and JSON made of it."""
    types = get_type_hints(kind)
    names = {field.name for field in dataclasses.fields(kind)}
    if names != set(values):
        raise ValueError(f"missing {sorted(names - set(values))}, unknown {sorted(set(values) - names)}")
    frozen = {
        name: _from_dict(types[name], value)
        if dataclasses.is_dataclass(types[name])
        else tuple(value)
        if isinstance(value, list)
        else value
        for name, value in values.items()
    }
    return kind(**frozen)
