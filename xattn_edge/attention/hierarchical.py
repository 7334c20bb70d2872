"""Attention over groups, and over the members inside each: regions of an image, phrases of a text.

With β the weights of the members inside a group, α those of the groups and m_gp the members' part in the group's key,

```
β_g = softmax_p(s(q, k_gp))       α = softmax_g(s(q, Σ_p a_gp m_gp))       output = Σ_g α_g Σ_p β_gp v_gp
```

where a is the mean over the members when groups are attended to first, and β when members are. So the weights
`α_g β_gp` of all members sum to 1.
"""

from __future__ import annotations

from typing import Literal, NamedTuple, cast, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from xattn_edge.attention.checks import check_divides, check_mask, check_sides, check_tokens
from xattn_edge.attention.cross_modal import output_map, share_keys, split_heads
from xattn_edge.attention.one_way import present_weights
from xattn_edge.attention.options import PLAIN, AttentionOptions
from xattn_edge.attention.protocol import Attended, Exchange, Tokens

__all__ = ["Groups", "HierarchicalAttention", "HierarchicalExchange", "Order", "phrases", "regions"]

Order = Literal["groups_first", "members_first"]


class Groups(NamedTuple):
    """Tokens in groups: float `[batch, groups, members, width]`, and bool `[batch, groups, members]`."""

    features: Tensor
    mask: Tensor


class HierarchicalAttention(nn.Module):
    """Attention over groups and their members, by the equations above.

    `groups_first` chooses a region and then positions inside it (Seo et al., 2018); `members_first` reads the words of
    each phrase and then chooses among phrases (Yang et al., 2016, "Hierarchical attention networks").

    Args:
        dim_q: width of the queries.
        dim_k: width of the context; the number of heads divides it.
        dim_v: width of the output; the number of heads divides it.
        order: which of the two is attended to first.
        options: of the attention on both levels.

    Raises:
        ValueError: the heads do not divide a width, or there is no such order.
    """

    def __init__(
        self, dim_q: int, dim_k: int, dim_v: int, order: Order = "groups_first", options: AttentionOptions = PLAIN
    ) -> None:
        super().__init__()
        check_divides(options.heads, dim_k=dim_k, dim_v=dim_v)
        if order not in get_args(Order):
            raise ValueError(f"order: expected one of {', '.join(get_args(Order))}, found {order!r}")
        self.dim_q, self.dim_k = dim_q, dim_k
        self.order, self.options = order, options
        key_width, value_width = (dim // options.heads * options.key_heads for dim in (dim_k, dim_v))
        self.q_linear = nn.Linear(dim_q, dim_k)
        self.k_linear = nn.Linear(dim_k, key_width)
        self.group_linear = nn.Linear(dim_k, key_width)
        self.v_linear = nn.Linear(dim_k, value_width)
        self.out_linear = output_map(dim_v, options)
        self.member_similarity = options.build_similarity(dim_k // options.heads)
        self.group_similarity = options.build_similarity(dim_k // options.heads)
        self.weighting = options.build_weighting()

    def forward(
        self, query: Tensor, context: Tensor, *, mask: Tensor | None = None, need_weights: bool = True
    ) -> Attended:
        """Attend from `query` to the members of the groups of `context`.

        Args:
            query: `[batch, queries, dim_q]`.
            context: `[batch, groups, members, dim_k]`.
            mask: bool `[batch, groups, members]`, true where attention is allowed.

        Returns:
            Output `[batch, queries, dim_v]` and weights `[batch, heads, queries, groups, members]`.

        Raises:
            ValueError: no group, no member, or a shape that does not fit; names what was found and expected.
        """
        check_tokens("query", query, "batch", "queries", width=self.dim_q)
        check_tokens("context", context, "batch", "groups", "members", width=self.dim_k)
        mask = context.new_ones(context.shape[:3], dtype=torch.bool) if mask is None else mask
        check_mask("mask", mask, dict(zip(("batch", "groups", "members"), context.shape, strict=False)))
        queries = split_heads(self.q_linear(query), self.options.heads)
        members = self._members(self.k_linear, context)
        scores = self.member_similarity(queries[:, :, None], members).transpose(2, 3)
        inside = self.weighting(scores, mask[:, None, None])
        weights = self._over_groups(queries, context, mask, inside)[..., None] * inside
        shares = F.dropout(weights, self.options.dropout, self.training)
        output = (shares.transpose(2, 3) @ self._members(self.v_linear, context)).sum(2)
        merged = cast(Tensor, self.out_linear(output.transpose(1, 2).flatten(2)))
        return Attended(merged, weights if need_weights else None)

    def _members(self, linear: nn.Linear, context: Tensor) -> Tensor:
        """`[batch, heads, groups, members, head_width]`."""
        heads = self.options.key_heads
        split = linear(context).view(*context.shape[:3], heads, linear.out_features // heads)
        return share_keys(split.permute(0, 3, 1, 2, 4), self.options)

    def _over_groups(self, queries: Tensor, context: Tensor, mask: Tensor, inside: Tensor) -> Tensor:
        """Weights of the groups `[batch, heads, queries, groups]`; `inside` are those of their members."""
        parts = self._members(self.group_linear, context)
        if self.order == "members_first":
            shares = inside.transpose(2, 3)
        else:
            present = mask[:, None, :, None].to(parts.dtype)
            shares = present / present.sum(-1, keepdim=True).clamp(min=1)
        keys = (shares @ parts).transpose(2, 3)
        scores = self.group_similarity(queries[:, :, :, None], keys).squeeze(3)
        return cast(Tensor, self.weighting(scores, mask.any(-1)[:, None, None]))


class HierarchicalExchange(nn.Module):
    """The text reads regions of the image and positions inside them, the image reads words of the text and phrases.

    Args:
        width: of both modalities.
        options: of both attentions, on both levels.
        side: of the feature map whose positions the image tokens are; None for frames, which follow each other.
        window: side of a region, in positions, or frames of a stretch.
        words: of a phrase.

    Raises:
        ValueError: the heads do not divide the width, or the window does not divide the side.
    """

    def __init__(
        self,
        width: int,
        options: AttentionOptions = PLAIN,
        *,
        side: int | None,
        window: int = 2,
        words: int = 3,
    ) -> None:
        super().__init__()
        if side is not None:
            _check_window(side, window)
        self.side, self.window, self.words = side, window, words
        self.text_attention = HierarchicalAttention(width, width, width, "groups_first", options)
        self.image_attention = HierarchicalAttention(width, width, width, "members_first", options)

    def forward(self, text: Tokens, image: Tokens, *, need_weights: bool = True) -> Exchange:
        """What each side reads; weights are those of the text, then those of the image."""
        check_sides(text, image)
        areas = phrases(image, self.window) if self.side is None else regions(image, self.side, self.window)
        lines = phrases(text, self.words)
        by_text = self.text_attention(text.features, areas.features, mask=areas.mask, need_weights=need_weights)
        by_image = self.image_attention(image.features, lines.features, mask=lines.mask, need_weights=need_weights)
        return Exchange(by_text.output, by_image.output, present_weights(by_text, by_image))


def regions(tokens: Tokens, side: int, window: int) -> Groups:
    """The positions of a square feature map, row by row, in square windows.

    Args:
        tokens: `[batch, side², width]`.
        side: of the feature map, in positions.
        window: side of a region, in positions; divides `side`.

    Returns:
        `[batch, (side / window)², window², width]`.

    Raises:
        ValueError: the window does not divide the side, or there are not `side²` tokens.
    """
    _check_window(side, window)
    batch, count, width = tokens.features.shape
    if count != side * side:
        raise ValueError(f"expected {side * side} tokens of a feature map of side {side}, found {count}")
    windows = side // window

    def grouped(each: Tensor, features: int) -> Tensor:
        split = each.reshape(batch, windows, window, windows, window, features).transpose(2, 3)
        return split.reshape(batch, windows * windows, window * window, features)

    return Groups(grouped(tokens.features, width), grouped(tokens.mask, 1).squeeze(-1))


def phrases(tokens: Tokens, length: int) -> Groups:
    """Every `length` tokens that follow each other, the last of them filled up with masked zeros, and a group of zeros.

    `[batch, tokens, width]` to `[batch, tokens / length rounded up + 1, length, width]`.
    """
    # An exporter takes a number of groups that is 1 in its example for a constant: with one more it never is.
    missing = -tokens.features.shape[1] % length + length
    features, mask = F.pad(tokens.features, (0, 0, 0, missing)), F.pad(tokens.mask, (0, missing))
    batch, count, width = features.shape
    return Groups(features.view(batch, count // length, length, width), mask.view(batch, count // length, length))


def _check_window(side: int, window: int) -> None:
    if window < 1 or side % window:
        raise ValueError(f"window: expected a divisor of a side of {side} positions, found {window}")
