"""Attention in plain arithmetic, `MatMul`, `Softmax`, `MatMul`, for engines that lack the `Attention` operator."""

from __future__ import annotations

from xattn_export.decompose.rewrite import decompose_attention
from xattn_export.decompose.split_cache import split_cache

__all__ = ["decompose_attention", "split_cache"]
