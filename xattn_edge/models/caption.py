"""Captioning: a Transformer decoder that attends to the picture at every step."""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn

from xattn_edge.attention import KeyValue, MultiHeadAttention, causal_mask
from xattn_edge.encoders import ImageEncoder
from xattn_edge.fusion import CrossAttentionLayer
from xattn_edge.models.config import CaptionConfig
from xattn_edge.models.cross_modal_config import CrossModalCaptionConfig

__all__ = ["CaptionModel", "Captioner", "DecoderLayer"]


class DecoderLayer(nn.Module):
    """Causal self-attention with a KV cache, then cross-attention to the picture and a feed-forward block."""

    def __init__(self, width: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.self_attention_norm = nn.LayerNorm(width)
        self.self_attention = MultiHeadAttention(width, heads)
        self.cross = CrossAttentionLayer(width, heads, dropout)
        self.dropout = nn.Dropout(dropout)

    def forward(self, tokens: Tensor, past: KeyValue, cross: KeyValue, mask: Tensor) -> tuple[Tensor, KeyValue]:
        """`tokens` `[batch, length, width]` after `past`; returns tokens and the cache with them appended."""
        normed = self.self_attention_norm(tokens)
        new = self.self_attention.project_context(normed)
        present = KeyValue(torch.cat((past.key, new.key), 2), torch.cat((past.value, new.value), 2))
        tokens = tokens + self.dropout(self.self_attention(normed, present, mask))
        return self.cross(tokens, cross), present


class Captioner(nn.Module):
    """What every captioner does alike: whole captions from a picture, teacher-forced or greedily.

    `encode_image` runs once a picture; `decode` once a step, or once for a whole caption in training.

    Args:
        config: of the model, whose `layers` and `decode` are those of the subclass.
        image_encoder: from pixels to `Tokens`.
    """

    layers: nn.ModuleList

    def __init__(self, config: CaptionConfig | CrossModalCaptionConfig, image_encoder: nn.Module) -> None:
        super().__init__()
        self.config = config
        self.image_encoder = image_encoder
        self.embedding = nn.Embedding(config.vocabulary, config.width)
        self.position = nn.Parameter(torch.randn(config.max_tokens, config.width) * 0.02)

    def encode_image(self, pixel_values: Tensor) -> list[KeyValue]:
        """Cross-attention keys and values of each layer for `pixel_values` `[batch, 3, side, side]`."""
        return self.project_image(self.image_encoder(pixel_values).features)

    def project_image(self, tokens: Tensor) -> list[KeyValue]:
        """The same for image tokens, `[batch, tokens, width]`."""
        raise NotImplementedError

    def decode(self, input_ids: Tensor, past: list[KeyValue], cross: list[KeyValue]) -> tuple[Tensor, list[KeyValue]]:
        """Logits of the token after each of `input_ids`.

        Args:
            input_ids: int64 `[batch, length]`, the tokens after those in the cache.
            past: KV cache of each layer, `[batch, heads, past, head_width]`.
            cross: what `encode_image` gave.

        Returns:
            Logits `[batch, length, vocabulary]`, and the cache with these tokens appended.
        """
        raise NotImplementedError

    def empty_cache(self, batch: int, dtype: torch.dtype = torch.float32) -> list[KeyValue]:
        """The KV cache before the first step: `past` is 0."""
        shape = (batch, self.config.heads, 0, self.config.width // self.config.heads)
        return [KeyValue(torch.zeros(shape, dtype=dtype), torch.zeros(shape, dtype=dtype)) for _ in self.layers]

    def embed(self, input_ids: Tensor, past_length: int) -> tuple[Tensor, Tensor]:
        """Tokens `[batch, length, width]` of ids that come after `past_length` others, and their causal mask."""
        length = input_ids.shape[1]
        mask = causal_mask(length, past_length, input_ids.device)
        return self.embedding(input_ids) + self.position[past_length : past_length + length], mask

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


class CaptionModel(Captioner):
    """Image encoder and caption decoder."""

    config: CaptionConfig
    image_encoder: ImageEncoder

    def __init__(self, config: CaptionConfig) -> None:
        super().__init__(config, config.build_image_encoder())
        self.layers = nn.ModuleList(
            DecoderLayer(config.width, config.heads, config.dropout) for _ in range(config.decoder_layers)
        )
        self.norm = nn.LayerNorm(config.width)
        self.head = nn.Linear(config.width, config.vocabulary)
        nn.init.normal_(self.embedding.weight, std=0.02)

    def project_image(self, tokens: Tensor) -> list[KeyValue]:
        """As `Captioner.project_image`."""
        return [cast(DecoderLayer, layer).cross.project_context(tokens) for layer in self.layers]

    def decode(self, input_ids: Tensor, past: list[KeyValue], cross: list[KeyValue]) -> tuple[Tensor, list[KeyValue]]:
        """As `Captioner.decode`."""
        tokens, mask = self.embed(input_ids, past[0].key.shape[2])
        present = []
        for layer, layer_past, layer_cross in zip(self.layers, past, cross, strict=True):
            tokens, layer_present = layer(tokens, layer_past, layer_cross, mask)
            present.append(layer_present)
        return self.head(self.norm(tokens)), present
