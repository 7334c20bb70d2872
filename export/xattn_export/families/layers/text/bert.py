"""BERT's layers as BLIP, GIT and BERT itself have them, around a checkpoint's own weights, over flat tensors.

The architecture is that of https://arxiv.org/abs/1810.04805, with the cross-attention of
https://arxiv.org/abs/2201.12086; names are those of Transformers' modeling_bert.py and modeling_blip_text.py.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, cast

from torch import Tensor, nn
from torch.nn import functional as F

from xattn_edge.attention import KeyValue
from xattn_export.families.layers.common import attend, attend_heads, attend_with_cache, fuse_linears, places

__all__ = ["BertLayer", "BertTextEmbeddings", "cross_projections"]


def cross_projections(attentions: Iterable[Any]) -> nn.ModuleList:
    """Of every cross-attention of BERT's kind, states → keys and values beside each other."""
    return nn.ModuleList(fuse_linears(attention.key, attention.value) for attention in attentions)


class BertTextEmbeddings(nn.Module):
    """Token ids after `past` others to vectors with their positions, normalised."""

    def __init__(self, model: Any) -> None:
        """`model`: of Transformers, with BERT's `embeddings`."""
        super().__init__()
        self.words = model.embeddings.word_embeddings
        self.positions = model.embeddings.position_embeddings
        self.norm = model.embeddings.LayerNorm

    def forward(self, input_ids: Tensor, past: int = 0) -> Tensor:
        numbers = places(input_ids, past)
        return cast(Tensor, self.norm(self.words(input_ids) + F.embedding(numbers, self.positions.weight)))


class BertLayer(nn.Module):
    """Self-attention, cross-attention where there is a context, a feed-forward network, each normalised after."""

    def __init__(self, layer: Any) -> None:
        super().__init__()
        attention, cross = layer.attention, layer.crossattention
        self.heads = attention.self.num_attention_heads
        self.qkv = fuse_linears(attention.self.query, attention.self.key, attention.self.value)
        self.attention_output = attention.output
        self.cross_query = cross.self.query
        self.cross_output = cross.output
        self.intermediate = layer.intermediate
        self.output = layer.output

    def with_cache(self, tokens: Tensor, past: KeyValue, context: KeyValue) -> tuple[Tensor, KeyValue]:
        """New tokens, causal, after those of the cache; and the longer cache."""
        query, key, value = self.qkv(tokens).chunk(3, -1)
        attended, present = attend_with_cache(query, key, value, past, self.heads)
        return self._after_attention(tokens, attended, context), present

    def forward(
        self, tokens: Tensor, mask: Tensor, context: KeyValue | None, context_mask: Tensor | None = None
    ) -> Tensor:
        """All tokens of a text, each of which sees those that `mask` allows, and of the context `context_mask`."""
        query, key, value = self.qkv(tokens).chunk(3, -1)
        attended = attend(query, key, value, self.heads, mask=mask)
        return self._after_attention(tokens, attended, context, context_mask)

    def _after_attention(
        self, tokens: Tensor, attended: Tensor, context: KeyValue | None, context_mask: Tensor | None = None
    ) -> Tensor:
        tokens = self.attention_output(attended, tokens)
        if context is not None:
            seen = attend_heads(self.cross_query(tokens), context, context_mask)
            tokens = self.cross_output(seen, tokens)
        return cast(Tensor, self.output(self.intermediate(tokens), tokens))
