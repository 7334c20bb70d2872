"""Cross-modal attention: queries of one modality, keys and values of another.

```
q = W_q query + b_q        [batch, queries, dim_k]
k = W_k context + b_k      [batch, context, dim_k]
v = W_v context + b_v      [batch, context, dim_v]
output = softmax(q kᵀ) v   [batch, queries, dim_v]
```
"""

from __future__ import annotations

from typing import cast

from torch import Tensor, nn
from torch.nn import functional as F

from xattn_edge.attention.checks import broadcast_mask, check_divides, check_tokens
from xattn_edge.attention.multi_head import KeyValue
from xattn_edge.attention.options import PLAIN, AttentionOptions
from xattn_edge.attention.protocol import Attended
from xattn_edge.attention.similarity import DotProduct

__all__ = ["CrossModalAttention", "share_keys", "split_heads"]


class CrossModalAttention(nn.Module):
    """Attention from one modality to another, by default exactly the equations above.

    `options` puts another similarity in the place of `q kᵀ` (`scaled_dot` divides by the root of the head's width) and
    another weighting in the place of softmax. Several heads each see their part of `q`, `k` and `v`; their outputs go
    side by side through `out_linear`, dim_v→dim_v without bias (Vaswani et al., 2017, section 3.2.2).

    Parameters: `q_linear` dim_q→dim_k, `k_linear` dim_k→dim_k, `v_linear` dim_k→dim_v; with grouped queries the
    outputs of the last two are narrower.

    Args:
        dim_q: width of the queries.
        dim_k: width of the context; the number of heads divides it.
        dim_v: width of the output; the number of heads divides it.
        options: heads, similarity, weighting, dropout.

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
        self.out_linear = nn.Linear(dim_v, dim_v, bias=False) if options.heads > 1 else nn.Identity()
        self.similarity = options.build_similarity(dim_k // options.heads)
        self.weighting = options.build_weighting()

    def forward(
        self, query: Tensor, context: Tensor, mask: Tensor | None = None, *, need_weights: bool = True
    ) -> Attended:
        """Attend from `query` to `context`.

        Args:
            query: `[batch, queries, dim_q]`.
            context: `[batch, context, dim_k]`.
            mask: bool, `[batch, context]` or `[batch, queries, context]`, true where attention is allowed.
            need_weights: whether the weights are wanted; without, soft attention by products is one operator.

        Returns:
            Output `[batch, queries, dim_v]` and weights `[batch, heads, queries, context]`; both are 0 for a query that
            may attend to nothing.

        Raises:
            ValueError: an empty sequence, or a shape that does not fit; names what was found and expected.
        """
        check_tokens("query", query, "batch", "queries", width=self.dim_q)
        check_tokens("context", context, "batch", "context", width=self.dim_k)
        allowed = broadcast_mask(mask, query, context)
        return self.attend(query, self.project_context(context), allowed, need_weights=need_weights)

    def project_context(self, context: Tensor) -> KeyValue:
        """Keys and values of `context` `[batch, context, dim_k]`, each `[batch, kv_heads, context, …]`."""
        heads = self.options.key_heads
        return KeyValue(split_heads(self.k_linear(context), heads), split_heads(self.v_linear(context), heads))

    def attend(
        self, query: Tensor, context: KeyValue, mask: Tensor | None = None, *, need_weights: bool = True
    ) -> Attended:
        """As `forward`, to what `project_context` gave, with a mask `[batch, 1, queries, context]`; checks nothing."""
        queries = split_heads(self.q_linear(query), self.options.heads)
        if not need_weights and self.options.weighting == "soft" and isinstance(self.similarity, DotProduct):
            return Attended(self._merge(self._fused(self.similarity, queries, context, mask)), None)
        key, value = (share_keys(each, self.options) for each in context)
        weights = cast(Tensor, self.weighting(self.similarity(queries, key), mask))
        output = self._merge(F.dropout(weights, self.options.dropout, self.training) @ value)
        return Attended(output, weights if need_weights else None)

    def _fused(self, similarity: DotProduct, queries: Tensor, context: KeyValue, mask: Tensor | None) -> Tensor:
        left, right = similarity.operands(queries, context.key)
        return F.scaled_dot_product_attention(
            left,
            right,
            context.value,
            attn_mask=mask,
            dropout_p=self.options.dropout if self.training else 0.0,
            scale=similarity.scale(left.shape[-1]),
            enable_gqa=self.options.key_heads < self.options.heads,
        )

    def _merge(self, heads: Tensor) -> Tensor:
        return cast(Tensor, self.out_linear(heads.transpose(1, 2).flatten(2)))


def split_heads(tokens: Tensor, heads: int) -> Tensor:
    """`[batch, tokens, heads × width]` to `[batch, heads, tokens, width]`."""
    batch, count, width = tokens.shape
    return tokens.view(batch, count, heads, width // heads).transpose(1, 2)


def share_keys(tensor: Tensor, options: AttentionOptions) -> Tensor:
    """Keys or values `[batch, kv_heads, …]`, each given to as many heads as share it: `[batch, heads, …]`."""
    if options.key_heads == options.heads:
        return tensor
    return tensor.repeat_interleave(options.heads // options.key_heads, dim=1)
