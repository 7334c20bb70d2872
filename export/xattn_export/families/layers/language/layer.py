"""One decoder layer around a checkpoint's own weights, over flat tensors: what the models of the table differ in.

RMSNorm (https://arxiv.org/abs/1910.07467) and grouped queries (https://arxiv.org/abs/2305.13245), as in
https://arxiv.org/abs/2302.13971; normalised queries and keys
(https://arxiv.org/abs/2302.05442); norms around each half and softcap (https://arxiv.org/abs/2408.00118). Names are
those of Transformers' modeling_llama.py.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from xattn_edge.attention import KeyValue
from xattn_export.families.layers.common import RmsNorm, attend_with_cache, fuse_linears
from xattn_export.families.layers.language.feed_forward import GatedFeedForward
from xattn_export.families.layers.language.positions import Rotation

__all__ = ["DecoderLayer", "LayerKind"]


@dataclass(frozen=True)
class LayerKind:
    """What the layers of one kind of model have beside those of Llama.

    norms_queries: queries and keys are normalised, head by head, before they are rotated.
    norms_after: what attention and the feed-forward network make is normalised once more, before it is added.
    norm_offset: what is added to the weights of all norms.
    fused: the checkpoint has queries, keys and values in one product, gate and up in another.
    softcaps: scores of attention are capped as the configuration says.
    """

    norms_queries: bool = False
    norms_after: bool = False
    norm_offset: float = 0.0
    fused: bool = False
    softcaps: bool = False


class DecoderLayer(GatedFeedForward):
    """Self-attention with rotated, grouped queries, then a gated feed-forward network, each on normalised tokens."""

    def __init__(self, layer: Any, kind: LayerKind, heads: int, kv_heads: int, softcap: float | None) -> None:
        super().__init__(layer, fused=kind.fused, norms_after=kind.norms_after, norm_offset=kind.norm_offset)
        attention = layer.self_attn
        self.heads, self.kv_heads = heads, kv_heads
        self.head_width = int(attention.head_dim)
        self.scale = float(attention.scaling)
        self.softcap = softcap
        if kind.fused:
            self.qkv = attention.qkv_proj
        else:
            self.qkv = fuse_linears(attention.q_proj, attention.k_proj, attention.v_proj)
        self.attention_output = attention.o_proj
        self.attention_norm = RmsNorm(layer.input_layernorm, kind.norm_offset)
        self.query_norm = self.key_norm = self.after_attention = None
        if kind.norms_queries:
            self.query_norm = RmsNorm(attention.q_norm, kind.norm_offset)
            self.key_norm = RmsNorm(attention.k_norm, kind.norm_offset)
        if kind.norms_after:
            self.after_attention = RmsNorm(layer.post_attention_layernorm, kind.norm_offset)

    def with_cache(
        self, tokens: Tensor, past: KeyValue, rotation: Rotation | None, mask: Tensor | None
    ) -> tuple[Tensor, KeyValue]:
        """New tokens, after those of the cache; and the longer cache.

        Args:
            rotation: of the new tokens; None for a layer without positions.
            mask: as for `attend_with_cache`: causal where it is None.
        """
        attended, present = self._attended(self.attention_norm(tokens), past, rotation, mask)
        return self.fed_forward(self.added(tokens, attended, self.after_attention)), present

    def _attended(
        self, tokens: Tensor, past: KeyValue, rotation: Rotation | None, mask: Tensor | None
    ) -> tuple[Tensor, KeyValue]:
        query_width, kv_width = self.heads * self.head_width, self.kv_heads * self.head_width
        placed, value = torch.split(self.qkv(tokens), [query_width + kv_width, kv_width], -1)
        query, key = torch.split(self._placed(placed, rotation), [query_width, kv_width], -1)
        attended, present = attend_with_cache(
            query,
            key,
            value,
            past,
            self.heads,
            kv_heads=self.kv_heads,
            mask=mask,
            scale=self.scale,
            softcap=self.softcap,
        )
        return self.attention_output(attended), present

    def _placed(self, tokens: Tensor, rotation: Rotation | None) -> Tensor:
        """Queries and keys together, `[batch, length, (heads + kv_heads) × head_width]`, normalised and rotated."""
        if self.query_norm is None and rotation is None:
            return tokens
        batch, length, _ = tokens.shape
        heads = tokens.view(batch, length, self.heads + self.kv_heads, self.head_width)
        if self.query_norm is not None and self.key_norm is not None:
            query, key = torch.split(heads, [self.heads, self.kv_heads], 2)
            heads = torch.cat((self.query_norm(query), self.key_norm(key)), 2)
        return (heads if rotation is None else rotation.rotate(heads)).flatten(2)
