"""Sentiment of what somebody says, from the words, the sound of them and frames of the speaker; any may be missing."""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn

from xattn_edge.attention import MechanismConfig, Tokens
from xattn_edge.attention.checks import check_heads
from xattn_edge.encoders.configs import SpeechEncoderConfig, TextEncoderConfig, VideoEncoderConfig
from xattn_edge.fusion import Fused, FusionConfig
from xattn_edge.models.layer import CrossModalLayer, masked_mean

__all__ = ["MODALITIES", "SentimentConfig", "SentimentModel"]

MODALITIES = ("text", "speech", "frames")
"""In the order in which fusion takes them."""


@dataclass(frozen=True, kw_only=True)
class SentimentConfig:
    """Three encoders, how the text and the two others read each other, and how the three become a label.

    mechanism: its image side is speech and frames, one after the other. layers: how often, with weights of its own.

    Raises:
        ValueError: parts that do not go together; says which and why.
    """

    text: TextEncoderConfig
    speech: SpeechEncoderConfig
    frames: VideoEncoderConfig
    mechanism: MechanismConfig
    fusion: FusionConfig
    layers: int
    width: int
    dropout: float
    labels: tuple[str, ...]

    def __post_init__(self) -> None:
        heads = {
            "mechanism": self.mechanism.options.heads,
            "text encoder": self.text.heads,
            "speech encoder": self.speech.heads,
            "frame encoder": self.frames.heads,
        }
        check_heads(self.width, heads)
        self.text.check_width(self.width)
        if self.layers < 0 or len(self.labels) < 2:
            raise ValueError(
                f"expected 0 or more layers and at least 2 labels, found {self.layers} and {len(self.labels)}"
            )
        self.fusion.check_modalities(len(MODALITIES), ", ".join(MODALITIES))


class SentimentModel(nn.Module):
    """Words attend to sound and frames; the mean of each modality that is present is fused to a label.

    A modality is present in a sample whose mask is true somewhere; what a missing one holds does not matter.
    """

    def __init__(self, config: SentimentConfig) -> None:
        super().__init__()
        self.config = config
        self.text_encoder = config.text.build(config.width, config.dropout)
        self.speech_encoder = config.speech.build(config.width, config.dropout)
        self.frame_encoder = config.frames.build(config.width, config.dropout)
        self.layers = nn.ModuleList(
            CrossModalLayer(config.mechanism, config.width, None, config.dropout) for _ in range(config.layers)
        )
        self.norms = nn.ModuleList(nn.LayerNorm(config.width) for _ in MODALITIES)
        self.dropout = nn.Dropout(config.dropout)
        self.head = config.fusion.build((config.width,) * len(MODALITIES), len(config.labels))

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor,
        log_mel: Tensor,
        log_mel_mask: Tensor,
        frame_values: Tensor,
        frame_mask: Tensor,
    ) -> Tensor:
        """Logits `[batch, labels]`.

        Args:
            input_ids, attention_mask: int64 `[batch, length]`, padded on the right.
            log_mel, log_mel_mask: spectrograms `[batch, frames, bands]`; int64 or bool `[batch, frames]`.
            frame_values, frame_mask: `[batch, images, 3, side, side]`; int64 or bool `[batch, images]`.
        """
        text = self.text_encoder(input_ids, attention_mask)
        speech = self.speech_encoder(log_mel, log_mel_mask.bool())
        frames = self.frame_encoder(frame_values, frame_mask.bool())
        return self.decide(text, speech, frames)

    def decide(self, text: Tokens, speech: Tokens, frames: Tokens) -> Tensor:
        """The same for tokens of the three."""
        others = Tokens(torch.cat([speech.features, frames.features], 1), torch.cat([speech.mask, frames.mask], 1))
        for layer in self.layers:
            text, others = layer(text, others)
        heard = speech.features.shape[1]
        sides = (
            text,
            Tokens(others.features[:, :heard], speech.mask),
            Tokens(others.features[:, heard:], frames.mask),
        )
        means = [
            self.dropout(masked_mean(norm(side.features), side.mask))
            for norm, side in zip(self.norms, sides, strict=True)
        ]
        present = torch.stack([side.mask.any(1) for side in sides], 1)
        return cast(Fused, self.head(means, present)).output
