"""Attention as explicit arithmetic while torch exports: without it the exporter writes `Attention` from opset 23 on."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor
from torch.nn import functional as F

__all__ = ["decomposed_attention", "explicit_attention"]


def explicit_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """`torch.nn.functional.scaled_dot_product_attention`, with its signature, step by step.

    Args:
        query: `[batch, heads, queries, head_width]`.
        key: `[batch, heads, keys, head_width]`.
        value: as `key`.
        attn_mask: bool (true: attend) or float (added), broadcast to `[batch, heads, queries, keys]`.
        scale: of the scores; by default `1 / sqrt(head_width)`.

    Raises:
        NotImplementedError: dropout, a causal flag or grouped queries: no family here uses them.
    """
    if dropout_p or is_causal or enable_gqa:
        raise NotImplementedError("decomposed attention takes an explicit mask, no dropout and no grouped queries")
    factor = 1 / math.sqrt(query.shape[-1]) if scale is None else scale
    scores = torch.matmul(query * factor, key.transpose(-2, -1))
    if attn_mask is not None and attn_mask.dtype == torch.bool:
        scores = scores.masked_fill(~attn_mask, float("-inf"))
    elif attn_mask is not None:
        scores = scores + attn_mask
    return torch.matmul(scores.softmax(-1), value)


@contextmanager
def decomposed_attention() -> Iterator[None]:
    """While it is open, every module that attends does so by `explicit_attention`."""
    original = F.scaled_dot_product_attention
    F.scaled_dot_product_attention = explicit_attention
    try:
        yield
    finally:
        F.scaled_dot_product_attention = original
