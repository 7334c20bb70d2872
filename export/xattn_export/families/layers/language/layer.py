"""One decoder layer around a checkpoint's own weights, over flat tensors: what the models of the table differ in.

RMSNorm (https://arxiv.org/abs/1910.07467), grouped queries (https://arxiv.org/abs/2305.13245) and SwiGLU
(https://arxiv.org/abs/2002.05202), as in https://arxiv.org/abs/2302.13971; normalised queries and keys
(https://arxiv.org/abs/2302.05442); norms around each half and softcap (https://arxiv.org/abs/2408.00118). Names are
those of Transformers' modeling_llama.py.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from xattn_edge.attention import KeyValue
from xattn_export.families.layers.common import RmsNorm, attend_with_cache, fuse_linears
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


class DecoderLayer(nn.Module):
    """Self-attention with rotated, grouped queries, then a gated feed-forward network, each on normalised tokens."""

    def __init__(self, layer: Any, kind: LayerKind, heads: int, kv_heads: int, softcap: float | None) -> None:
        super().__init__()
        attention, feed_forward = layer.self_attn, layer.mlp
        self.heads, self.kv_heads = heads, kv_heads
        self.head_width = int(attention.head_dim)
        self.scale = float(attention.scaling)
        self.softcap = softcap
        if kind.fused:
            self.qkv, self.gate_and_up = attention.qkv_proj, feed_forward.gate_up_proj
            self.activation = feed_forward.activation_fn
        else:
            self.qkv = fuse_linears(attention.q_proj, attention.k_proj, attention.v_proj)
            self.gate_and_up = fuse_linears(feed_forward.gate_proj, feed_forward.up_proj)
            self.activation = feed_forward.act_fn
        self.attention_output, self.output = attention.o_proj, feed_forward.down_proj
        self.attention_norm = RmsNorm(layer.input_layernorm, kind.norm_offset)
        self.query_norm = self.key_norm = self.after_attention = self.after_feed_forward = None
        if kind.norms_queries:
            self.query_norm = RmsNorm(attention.q_norm, kind.norm_offset)
            self.key_norm = RmsNorm(attention.k_norm, kind.norm_offset)
        before_feed_forward = layer.post_attention_layernorm
        if kind.norms_after:
            self.after_attention = RmsNorm(layer.post_attention_layernorm, kind.norm_offset)
            self.after_feed_forward = RmsNorm(layer.post_feedforward_layernorm, kind.norm_offset)
            before_feed_forward = layer.pre_feedforward_layernorm
        self.feed_forward_norm = RmsNorm(before_feed_forward, kind.norm_offset)
        self.residual = float(getattr(layer, "residual_multiplier", 1.0))

    def with_cache(
        self, tokens: Tensor, past: KeyValue, rotation: Rotation | None, mask: Tensor | None
    ) -> tuple[Tensor, KeyValue]:
        """New tokens, after those of the cache; and the longer cache.

        Args:
            rotation: of the new tokens; None for a layer without positions.
            mask: as for `attend_with_cache`: causal where it is None.
        """
        attended, present = self._attended(self.attention_norm(tokens), past, rotation, mask)
        tokens = self._added(tokens, attended, self.after_attention)
        gate, up = self.gate_and_up(self.feed_forward_norm(tokens)).chunk(2, -1)
        return self._added(tokens, self.output(self.activation(gate) * up), self.after_feed_forward), present

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

    def _added(self, tokens: Tensor, found: Tensor, norm: RmsNorm | None) -> Tensor:
        found = found if norm is None else norm(found)
        return tokens + (found if self.residual == 1.0 else found * self.residual)
