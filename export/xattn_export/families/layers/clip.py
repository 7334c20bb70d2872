"""The encoder layer of CLIP and SigLIP around a checkpoint's own weights, over flat tensors: for images and for texts.

CLIP: https://arxiv.org/abs/2103.00020, SigLIP: https://arxiv.org/abs/2303.15343; names are those of Transformers'
modeling_clip.py and modeling_siglip.py. It knows tokens, neither images nor texts.
"""

from __future__ import annotations

from typing import Any, cast

from torch import Tensor, nn

from xattn_export.families.layers.common import attend, fuse_linears

__all__ = ["ClipLayer"]


class ClipLayer(nn.Module):
    """Attention, then a feed-forward network, each on normalised tokens."""

    def __init__(self, layer: Any) -> None:
        super().__init__()
        attention = layer.self_attn
        self.heads, self.scale = attention.num_heads, attention.scale
        self.qkv = fuse_linears(attention.q_proj, attention.k_proj, attention.v_proj)
        self.attention_output = attention.out_proj
        self.attention_norm = layer.layer_norm1
        self.feed_forward = layer.mlp
        self.feed_forward_norm = layer.layer_norm2

    def forward(self, tokens: Tensor, mask: Tensor | None = None) -> Tensor:
        """`[batch, length, width]`; `mask` as for `attend`."""
        query, key, value = self.qkv(self.attention_norm(tokens)).chunk(3, -1)
        attended = attend(query, key, value, self.heads, mask=mask, scale=self.scale)
        tokens = tokens + self.attention_output(attended)
        return cast(Tensor, tokens + self.feed_forward(self.feed_forward_norm(tokens)))
