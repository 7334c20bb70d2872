"""Visual question answering by any mechanism and any fusion."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

from torch import Tensor, nn

from xattn_edge.attention import KeyValue, MechanismConfig, Tokens
from xattn_edge.attention.caches import flatten, pairs
from xattn_edge.attention.checks import check_heads
from xattn_edge.encoders.configs import ImageEncoderConfig, TextEncoderConfig
from xattn_edge.fusion import Fused, FusionConfig
from xattn_edge.models.layer import CrossModalLayer, masked_mean

__all__ = ["VqaConfig", "VqaModel"]


@dataclass(frozen=True, kw_only=True)
class VqaConfig:
    """Questions about images, answered from a list.

    image, text: the encoders.
    mechanism: how both read each other.
    image_norm: whether every layer normalises the image tokens before they are read.
    layers: how often both read each other, each time with weights of its own.
    fusion: how what both have read becomes an answer; None where the text, which has read the image, decides alone.
    width: of all tokens.
    answers: the list.

    Raises:
        ValueError: parts that do not go together; says which and why.
    """

    image: ImageEncoderConfig
    text: TextEncoderConfig
    mechanism: MechanismConfig
    image_norm: bool = True
    fusion: FusionConfig | None
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
        self.text.check_width(self.width)
        if self.layers < 1:
            raise ValueError(f"layers: expected at least 1, found {self.layers}")
        if len(self.answers) < 2:
            raise ValueError(f"answers: expected at least 2 to choose among, found {len(self.answers)}")
        self.mechanism.check_side(self.image.side)
        if self.fusion is not None:
            self.fusion.check_modalities(2, "text and image")
        elif not self.mechanism.reads[0]:
            raise ValueError(f"fusion: expected one with {self.mechanism.name}, whose text reads nothing, found none")

    @property
    def reads_once(self) -> bool:
        """Whether questions need no more of an image than keys and values, the same for each of them."""
        return self.mechanism.projects_once and not self.image_norm and self.fusion is None


class VqaModel(nn.Module):
    """Question and image read each other; the mean of each side is a modality, and both are fused to an answer.

    `encode_image` runs once an image, `answer` once a question.
    """

    def __init__(self, config: VqaConfig) -> None:
        super().__init__()
        self.config = config
        self.image_encoder = config.image.build(config.width)
        self.text_encoder = config.text.build(config.width, config.dropout)
        self.layers = nn.ModuleList(
            CrossModalLayer(
                config.mechanism, config.width, config.image.side, config.dropout, image_norm=config.image_norm
            )
            for _ in range(config.layers)
        )
        self.text_norm = nn.LayerNorm(config.width)
        self.image_norm = None if config.fusion is None else nn.LayerNorm(config.width)
        answers = len(config.answers)
        self.head = (
            nn.Linear(config.width, answers)
            if config.fusion is None
            else config.fusion.build((config.width, config.width), answers)
        )

    def encode_image(self, pixel_values: Tensor) -> tuple[Tensor, ...]:
        """What questions read of `pixel_values` `[batch, 3, side, side]`.

        Returns:
            Image tokens `[batch, tokens, width]` and their bool mask; or, where `config.reads_once`, keys and values
            of each layer, `key_0`, `value_0`, `key_1`, …, `[batch, kv_heads, tokens, head_width]`.
        """
        tokens = cast(Tokens, self.image_encoder(pixel_values))
        if not self.config.reads_once:
            return tokens
        return flatten([cast(CrossModalLayer, layer).project_image(tokens.features) for layer in self.layers])

    def answer(self, input_ids: Tensor, attention_mask: Tensor, image: Sequence[Tensor]) -> Tensor:
        """Logits `[batch, answers]` of questions, int64 `[batch, length]`, padded on the right.

        `image` is what `encode_image` returned, a row of it for every question.
        """
        return self.decide(self.text_encoder(input_ids, attention_mask), image)

    def decide(self, text: Tokens, image: Sequence[Tensor]) -> Tensor:
        """As `answer`, of text tokens."""
        if self.config.reads_once:
            return self._decide_alone(self._read_projected(text, pairs(image)))
        image_tokens = Tokens(*image)
        for layer in self.layers:
            text, image_tokens = layer(text, image_tokens)
        if self.image_norm is None:
            return self._decide_alone(text)
        text_mean = masked_mean(self.text_norm(text.features), text.mask)
        image_mean = masked_mean(self.image_norm(image_tokens.features), image_tokens.mask)
        return cast(Fused, self.head([text_mean, image_mean])).output

    def forward(self, pixel_values: Tensor, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Logits `[batch, answers]`."""
        return self.answer(input_ids, attention_mask, self.encode_image(pixel_values))

    def _read_projected(self, text: Tokens, image: Sequence[KeyValue]) -> Tokens:
        features = text.features
        for layer, context in zip(self.layers, image, strict=True):
            features, _ = cast(CrossModalLayer, layer).read(features, context)
        return Tokens(features, text.mask)

    def _decide_alone(self, text: Tokens) -> Tensor:
        return cast(Tensor, self.head(masked_mean(self.text_norm(text.features), text.mask)))
