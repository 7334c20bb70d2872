"""GIT's layers around a checkpoint's own weights, over flat tensors, with one `Attention` operator each.

The architecture is that of https://arxiv.org/abs/2205.14100; names are those of Transformers' modeling_git.py. It knows
layers; what is made of them is in `git.py`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from xattn_edge.attention import KeyValue, split_heads
from xattn_export.families.layers.common import attend, attend_with_cache, fuse_linears
from xattn_export.families.layers.vision.clip import ClipVision

if TYPE_CHECKING:
    from transformers.models.git.modeling_git import GitModel

__all__ = ["ImageTokens", "TokenEmbeddings", "TokenLayer"]


class ImageTokens(nn.Module):
    """Picture `[batch, 3, height, width]` to the image tokens `[batch, 1 + patches, width]` that the decoder reads."""

    def __init__(self, model: GitModel) -> None:
        super().__init__()
        vision = model.image_encoder.vision_model
        self.vision = ClipVision(vision)
        self.last_norm = vision.post_layernorm
        self.projection = model.visual_projection

    def forward(self, pixel_values: Tensor) -> Tensor:
        return cast(Tensor, self.projection(self.last_norm(self.vision(pixel_values))))


class TokenEmbeddings(nn.Module):
    """Token ids after `past` others to vectors with their positions, normalised."""

    def __init__(self, model: GitModel) -> None:
        super().__init__()
        self.words = model.embeddings.word_embeddings
        self.positions = model.embeddings.position_embeddings
        self.norm = model.embeddings.LayerNorm

    def forward(self, input_ids: Tensor, past: int) -> Tensor:
        # By lookup: a slice of the table would bind the lengths to its size in the exported program.
        places = torch.arange(past, past + input_ids.shape[1], device=input_ids.device)
        return cast(Tensor, self.norm(self.words(input_ids) + F.embedding(places, self.positions.weight)))


class TokenLayer(nn.Module):
    """Self-attention and a feed-forward network, each normalised after: for image tokens and text alike."""

    def __init__(self, layer: Any) -> None:
        super().__init__()
        attention = layer.attention
        self.heads = attention.self.num_attention_heads
        self.qkv = fuse_linears(attention.self.query, attention.self.key, attention.self.value)
        self.attention_output = attention.output
        self.intermediate = layer.intermediate
        self.output = layer.output

    def forward(self, tokens: Tensor) -> tuple[Tensor, KeyValue]:
        """Image tokens, which attend to each other alone; and their keys and values."""
        query, key, value = self.qkv(tokens).chunk(3, -1)
        attended = attend(query, key, value, self.heads)
        return self._after_attention(tokens, attended), self._cached(key, value)

    def keys_and_values(self, tokens: Tensor) -> KeyValue:
        """Those of image tokens, of which nothing else is needed after the last layer."""
        _, key, value = self.qkv(tokens).chunk(3, -1)
        return self._cached(key, value)

    def with_cache(self, tokens: Tensor, past: KeyValue) -> tuple[Tensor, KeyValue]:
        """New tokens, causal, after those of the cache; and the longer cache."""
        query, key, value = self.qkv(tokens).chunk(3, -1)
        attended, present = attend_with_cache(query, key, value, past, self.heads)
        return self._after_attention(tokens, attended), present

    def _cached(self, key: Tensor, value: Tensor) -> KeyValue:
        return KeyValue(split_heads(key, self.heads), split_heads(value, self.heads))

    def _after_attention(self, tokens: Tensor, attended: Tensor) -> Tensor:
        tokens = self.attention_output(attended, tokens)
        return cast(Tensor, self.output(self.intermediate(tokens), tokens))
