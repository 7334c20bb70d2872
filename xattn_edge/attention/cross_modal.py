"""Cross-modal attention: queries of one modality, keys and values of another.

```
Q = W_q q + b_q            [batch, queries, dim_k]
K = W_k k + b_k            [batch, keys, dim_k]
V = W_v v + b_v            [batch, keys, dim_v]
output = softmax(Q Kᵀ) V   [batch, queries, dim_v]
```
"""

from __future__ import annotations

import math
from typing import NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from xattn_edge.attention.checks import broadcast_mask, check_divides, check_same_tokens, check_tokens
from xattn_edge.attention.options import PLAIN, AttentionOptions
from xattn_edge.attention.protocol import Attended
from xattn_edge.attention.similarity import ProductSimilarity

__all__ = ["CrossModalAttention", "KeyValue", "causal_mask", "output_map", "share_keys", "split_heads"]


class KeyValue(NamedTuple):
    """Projected keys and values: both `[batch, kv_heads, keys, head_width]`, float."""

    key: Tensor
    value: Tensor


class CrossModalAttention(nn.Module):
    """Attention from one modality to another, by default exactly the equations above.

    `options` puts another similarity in the place of `Q Kᵀ` (`scaled_dot` divides by the root of the head's width) and
    another weighting in the place of softmax. Several heads each see their part of `Q`, `K` and `V`; their outputs are
    concatenated and go through `out_linear`, dim_v→dim_v (Vaswani et al., 2017, section 3.2.2).

    Parameters: `q_linear` dim_q→dim_k, `k_linear` dim_k→dim_k, `v_linear` dim_k→dim_v; with grouped queries the
    outputs of the last two are narrower.

    Args:
        dim_q: width of the queries.
        dim_k: width of keys and values; the number of heads divides it.
        dim_v: width of the output; the number of heads divides it.
        options: heads, similarity, weighting, dropout, bias of the output.

    Raises:
        ValueError: the heads do not divide a width.
    """

    def __init__(self, dim_q: int, dim_k: int, dim_v: int, options: AttentionOptions = PLAIN) -> None:
        super().__init__()
        check_divides(options.heads, dim_k=dim_k, dim_v=dim_v)
        self.dim_q, self.dim_k, self.dim_v = dim_q, dim_k, dim_v
        self.options = options
        self.q_linear = nn.Linear(dim_q, dim_k)
        self.k_linear = nn.Linear(dim_k, dim_k // options.heads * options.key_heads)
        self.v_linear = nn.Linear(dim_k, dim_v // options.heads * options.key_heads)
        self.out_linear = output_map(dim_v, options)
        self.similarity = options.build_similarity(dim_k // options.heads)
        self.weighting = options.build_weighting()

    def forward(
        self, query: Tensor, key: Tensor, value: Tensor, *, mask: Tensor | None = None, need_weights: bool = True
    ) -> Attended:
        """Attend from `query` to `key`, and read `value`: batch first, results as of `torch.nn.MultiheadAttention`.

        Args:
            query: float `[batch, queries, dim_q]`.
            key: float `[batch, keys, dim_k]`.
            value: float `[batch, keys, dim_k]`; may be the same tensor as `key`.
            mask: bool, `[batch, keys]` or `[batch, queries, keys]`, true where attention is allowed, as in
                `torch.nn.functional.scaled_dot_product_attention`. The masks of `torch.nn.MultiheadAttention` say the
                opposite: pass `~key_padding_mask`.
            need_weights: whether to return the weights; without them, soft attention by products is one operator.

        Returns:
            Output `[batch, queries, dim_v]`, and weights `[batch, heads, queries, keys]`, not averaged over heads, or
            None without `need_weights`. Both are 0 for a query that may attend to nothing.

        Raises:
            ValueError: an empty sequence, or a shape that does not fit; says which was expected and found.
        """
        check_tokens("query", query, "batch", "queries", width=self.dim_q)
        check_tokens("key", key, "batch", "keys", width=self.dim_k)
        check_tokens("value", value, "batch", "keys", width=self.dim_k)
        check_same_tokens(key, value)
        allowed = broadcast_mask(mask, query, key)
        return self.attend(query, self.project(key, value), allowed, need_weights=need_weights)

    def project(self, key: Tensor, value: Tensor) -> KeyValue:
        """Keys and values in heads, of `[batch, keys, dim_k]` each: once for any number of queries; checks nothing."""
        heads = self.options.key_heads
        return KeyValue(split_heads(self.k_linear(key), heads), split_heads(self.v_linear(value), heads))

    def attend(
        self, query: Tensor, context: KeyValue, mask: Tensor | None = None, *, need_weights: bool = True
    ) -> Attended:
        """As `forward`, to what `project` returned; checks nothing.

        `mask` is bool, `[queries, keys]` or `[batch, 1, queries, keys]`.
        """
        queries = split_heads(self.q_linear(query), self.options.heads)
        if not need_weights and self.options.is_one_operator:
            return Attended(self._merge(self._fused(queries, context, mask)), None)
        key, value = (share_keys(each, self.options) for each in context)
        weights = cast(Tensor, self.weighting(self.similarity(queries, key), mask))
        output = self._merge(F.dropout(weights, self.options.dropout, self.training) @ value)
        return Attended(output, weights if need_weights else None)

    def _fused(self, queries: Tensor, context: KeyValue, mask: Tensor | None) -> Tensor:
        similarity = cast(ProductSimilarity, self.similarity)
        left, right = similarity.operands(queries, context.key)
        scale = similarity.scale()
        return F.scaled_dot_product_attention(
            left,
            right,
            context.value,
            attn_mask=mask,
            dropout_p=self.options.dropout if self.training else 0.0,
            # None is 1/√width, which a graph then need not hold.
            scale=None if scale == 1 / math.sqrt(similarity.width) else scale,
            enable_gqa=self.options.key_heads < self.options.heads,
        )

    def _merge(self, heads: Tensor) -> Tensor:
        return cast(Tensor, self.out_linear(heads.transpose(1, 2).flatten(2)))


def output_map(width: int, options: AttentionOptions) -> nn.Module:
    """What the concatenated outputs of all heads `[…, width]` go through."""
    if options.heads == 1 and not options.output_bias:
        return nn.Identity()
    return nn.Linear(width, width, bias=options.output_bias)


def split_heads(tokens: Tensor, heads: int) -> Tensor:
    """`[batch, tokens, heads × width]` to `[batch, heads, tokens, width]`."""
    batch, count, width = tokens.shape
    return tokens.view(batch, count, heads, width // heads).transpose(1, 2)


def share_keys(tensor: Tensor, options: AttentionOptions) -> Tensor:
    """Keys or values `[batch, kv_heads, …]`, each repeated for the heads that share it: `[batch, heads, …]`."""
    if options.key_heads == options.heads:
        return tensor
    return tensor.repeat_interleave(options.heads // options.key_heads, dim=1)


def causal_mask(length: int, past: int, device: torch.device) -> Tensor:
    """Bool `[length, past + length]`: the query at `past + i` sees the keys up to and with itself."""
    keys = torch.arange(past + length, device=device)
    queries = torch.arange(past, past + length, device=device)
    return keys[None, :] <= queries[:, None]
