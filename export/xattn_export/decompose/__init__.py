"""Attention in plain arithmetic, `MatMul`, `Softmax`, `MatMul`, for engines that lack the `Attention` operator."""

from __future__ import annotations

from xattn_export.decompose.rewrite import decompose_attention

__all__ = ["decompose_attention"]
