"""Captioning by any similarity, weighting and fusion: a Transformer decoder that attends to the image at every step."""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn

from xattn_edge.attention import CrossModalAttention, KeyValue, MechanismConfig, causal_mask, transformer_options
from xattn_edge.attention.checks import check_heads
from xattn_edge.encoders.configs import ImageEncoderConfig
from xattn_edge.fusion import Fused, FusionConfig
from xattn_edge.models.layer import CrossModalLayer

__all__ = ["CaptionConfig", "CaptionDecoderLayer", "CaptionModel"]


@dataclass(frozen=True, kw_only=True)
class CaptionConfig:
    """Images described word by word.

    image: the encoder.
    mechanism: how a word reads the image; its heads are also those of self-attention.
    fusion: how what has been said and what has been seen become the next word; None where what has been said, in the
        light of what was seen, decides alone.
    layers: of the decoder, each with weights of its own.
    width: of all tokens.
    vocabulary: number of token ids.
    max_tokens: positions of the decoder, the start token among them.

    Raises:
        ValueError: parts that do not go together; says which and why.
    """

    image: ImageEncoderConfig
    mechanism: MechanismConfig
    fusion: FusionConfig | None
    layers: int
    width: int
    dropout: float
    vocabulary: int
    max_tokens: int
    pad_token_id: int
    start_token_id: int
    end_token_id: int

    def __post_init__(self) -> None:
        if not self.mechanism.projects_once:
            raise ValueError(
                f"mechanism: expected text_to_image, as a caption grows word by word and the image is read once "
                f"before it, found {self.mechanism.name}, whose image or words would read words that are yet to come"
            )
        check_heads(self.width, {"mechanism": self.heads, "image encoder": self.image.heads})
        if self.layers < 1:
            raise ValueError(f"layers: expected at least 1, found {self.layers}")
        if self.fusion is not None:
            self.fusion.check_modalities(2, "text and image")

    @property
    def heads(self) -> int:
        """Of every attention in the decoder."""
        return self.mechanism.options.heads


class CaptionDecoderLayer(nn.Module):
    """Causal self-attention with a KV cache; then every token reads the image, and a feed-forward block."""

    def __init__(self, config: CaptionConfig) -> None:
        super().__init__()
        width = config.width
        self.self_attention_norm = nn.LayerNorm(width)
        self.self_attention = CrossModalAttention(width, width, width, transformer_options(config.heads))
        self.cross = CrossModalLayer(config.mechanism, width, config.image.side, config.dropout, image_norm=False)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, tokens: Tensor, past: KeyValue, cross: KeyValue, mask: Tensor) -> tuple[Tensor, Tensor, KeyValue]:
        """`tokens` `[batch, length, width]` after `past`; returns tokens, what they read, and the longer cache."""
        normed = self.self_attention_norm(tokens)
        new = self.self_attention.project(normed, normed)
        present = KeyValue(torch.cat((past.key, new.key), 2), torch.cat((past.value, new.value), 2))
        attended = self.self_attention.attend(normed, present, mask, need_weights=False).output
        return *self.cross.read(tokens + self.dropout(attended), cross), present


class CaptionModel(nn.Module):
    """Image encoder and decoder; what has been said and what the last layer saw are fused to the next word.

    `encode_image` runs once an image; `decode` once a step, or once for a whole caption in training.
    """

    def __init__(self, config: CaptionConfig) -> None:
        super().__init__()
        self.config = config
        self.image_encoder = config.image.build(config.width)
        self.embedding = nn.Embedding(config.vocabulary, config.width)
        self.position = nn.Parameter(torch.randn(config.max_tokens, config.width) * 0.02)
        self.layers = nn.ModuleList(CaptionDecoderLayer(config) for _ in range(config.layers))
        self.text_norm = nn.LayerNorm(config.width)
        self.image_norm = None if config.fusion is None else nn.LayerNorm(config.width)
        self.head = (
            nn.Linear(config.width, config.vocabulary)
            if config.fusion is None
            else config.fusion.build((config.width, config.width), config.vocabulary)
        )
        nn.init.normal_(self.embedding.weight, std=0.02)

    def encode_image(self, pixel_values: Tensor) -> list[KeyValue]:
        """Cross-attention keys and values of each layer for `pixel_values` `[batch, 3, side, side]`."""
        return self.project_image(self.image_encoder(pixel_values).features)

    def project_image(self, tokens: Tensor) -> list[KeyValue]:
        """The same for image tokens, `[batch, tokens, width]`."""
        return [cast(CaptionDecoderLayer, layer).cross.project_image(tokens) for layer in self.layers]

    def decode(self, input_ids: Tensor, past: list[KeyValue], cross: list[KeyValue]) -> tuple[Tensor, list[KeyValue]]:
        """Logits of the token after each of `input_ids`.

        Args:
            input_ids: int64 `[batch, length]`, the tokens after those in the cache.
            past: KV cache of each layer, `[batch, heads, past, head_width]`.
            cross: what `encode_image` returned.

        Returns:
            Logits `[batch, length, vocabulary]`, and the cache with these tokens appended.
        """
        past_length, length = past[0].key.shape[2], input_ids.shape[1]
        mask = causal_mask(length, past_length, input_ids.device)
        tokens = self.embedding(input_ids) + self.position[past_length : past_length + length]
        seen, present = tokens, []
        for layer, layer_past, layer_cross in zip(self.layers, past, cross, strict=True):
            tokens, seen, layer_present = layer(tokens, layer_past, layer_cross, mask)
            present.append(layer_present)
        logits = self.decide(tokens.flatten(0, 1), seen.flatten(0, 1))
        return logits.view(*tokens.shape[:2], -1), present

    def decide(self, text: Tensor, image: Tensor) -> Tensor:
        """Logits `[rows, vocabulary]` of the words after states of text and image, both `[rows, width]`."""
        if self.image_norm is None:
            return cast(Tensor, self.head(self.text_norm(text)))
        return cast(Fused, self.head([self.text_norm(text), self.image_norm(image)])).output

    def empty_cache(self, batch: int, dtype: torch.dtype = torch.float32) -> list[KeyValue]:
        """The KV cache before the first step: `past` is 0."""
        shape = (batch, self.config.heads, 0, self.config.width // self.config.heads)
        return [KeyValue(torch.zeros(shape, dtype=dtype), torch.zeros(shape, dtype=dtype)) for _ in self.layers]

    def forward(self, pixel_values: Tensor, input_ids: Tensor) -> Tensor:
        """Logits `[batch, length, vocabulary]` of a whole caption at once, teacher-forced."""
        cross = self.encode_image(pixel_values)
        return self.decode(input_ids, self.empty_cache(len(input_ids), cross[0].key.dtype), cross)[0]

    @torch.inference_mode()
    def generate(self, pixel_values: Tensor) -> list[list[int]]:
        """Greedy captions, without start and end token; the longest fills every position of the decoder."""
        cross = self.encode_image(pixel_values)
        batch = len(pixel_values)
        tokens = torch.full((batch, 1), self.config.start_token_id)
        past = self.empty_cache(batch)
        captions: list[list[int]] = [[] for _ in range(batch)]
        running = set(range(batch))
        for _ in range(self.config.max_tokens):
            logits, past = self.decode(tokens, past, cross)
            tokens = logits[:, -1:].argmax(-1)
            running = {row for row in running if tokens[row, 0].item() != self.config.end_token_id}
            if not running:
                break
            for row in running:
                captions[row].append(int(tokens[row, 0]))
        return captions
