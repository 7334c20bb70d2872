"""BLIP-2's Q-Former around a checkpoint's own weights, over flat tensors, with one `Attention` operator each.

The architecture is that of https://arxiv.org/abs/2301.12597; names are those of Transformers' modeling_blip_2.py. The
image encoder before it is BLIP's. It knows layers; how they are used is in `transformers/blip2`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

from torch import Tensor, nn

from xattn_export.families.layers.common import attend, for_each_image, fuse_linears

if TYPE_CHECKING:
    from transformers.models.blip_2.modeling_blip_2 import Blip2QFormerModel

__all__ = ["QFormer"]


class QFormer(nn.Module):
    """What learned queries find in an image: tokens `[batch, patches, width]` to `[batch, queries, query_width]`."""

    def __init__(self, model: Blip2QFormerModel, queries: nn.Parameter) -> None:
        super().__init__()
        self.queries = queries
        self.norm = model.layernorm
        self.layers = nn.ModuleList(QFormerLayer(layer) for layer in model.encoder.layer)

    def forward(self, image: Tensor) -> Tensor:
        tokens = for_each_image(self.norm(self.queries), image)
        for layer in self.layers:
            tokens = layer(tokens, image)
        return tokens


class QFormerLayer(nn.Module):
    """Queries attend to each other, and in some layers to the image; a feed-forward network; each normalised after."""

    def __init__(self, layer: Any) -> None:
        super().__init__()
        own = layer.attention
        self.heads = own.attention.num_attention_heads
        self.qkv = fuse_linears(own.attention.query, own.attention.key, own.attention.value)
        self.attention_output = own.output
        self.sees_image = layer.has_cross_attention
        if self.sees_image:
            cross = layer.crossattention
            self.cross_query = cross.attention.query
            self.cross_key_value = fuse_linears(cross.attention.key, cross.attention.value)
            self.cross_output = cross.output
        self.intermediate = layer.intermediate_query
        self.output = layer.output_query

    def forward(self, tokens: Tensor, image: Tensor) -> Tensor:
        query, key, value = self.qkv(tokens).chunk(3, -1)
        tokens = self.attention_output(attend(query, key, value, self.heads), tokens)
        if self.sees_image:
            key, value = self.cross_key_value(image).chunk(2, -1)
            tokens = self.cross_output(attend(self.cross_query(tokens), key, value, self.heads), tokens)
        return cast(Tensor, self.output(self.intermediate(tokens), tokens))
