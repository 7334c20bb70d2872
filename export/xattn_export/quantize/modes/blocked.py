"""What the modes with blocked weights have in common."""

from __future__ import annotations

from collections.abc import Mapping

from xattn_export.quantize.base.options import Options

__all__ = ["BLOCKED_OPSET", "BLOCKED_OPTIONS", "accuracy_level", "rounds_activations"]

BLOCKED_OPSET = 21
"""The first with a blocked `DequantizeLinear`."""
BLOCKED_OPTIONS = ("rounding", "block", "symmetric", "exact_activations")


def accuracy_level(options: Options) -> Mapping[str, str]:
    """In what ONNX Runtime takes the other factor of a product with blocked weights."""
    return {"session.qdq_matmulnbits_accuracy_level": "1" if options.exact_activations else "4"}


def rounds_activations(options: Options) -> bool:
    """Whether that is in 8 bits."""
    return not options.exact_activations
