"""Attention in plain arithmetic, `MatMul`, `Softmax`, `MatMul`, for engines that lack the `Attention` operator.

`decompose_attention` rewrites a finished ONNX model; `decomposed_attention` keeps torch's exporter from writing it.
"""

from __future__ import annotations

from xattn_export.decompose.rewrite import decompose_attention
from xattn_export.decompose.torch_level import decomposed_attention, explicit_attention

__all__ = ["decompose_attention", "decomposed_attention", "explicit_attention"]
