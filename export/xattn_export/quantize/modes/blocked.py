"""What the modes with blocked weights have in common."""

from __future__ import annotations

from collections.abc import Mapping

from xattn_export.quantize.base.options import Options

__all__ = ["BLOCKED_OPSET", "BLOCKED_OPTIONS", "accuracy_level", "rounds_activations"]

BLOCKED_OPSET = 21
"""The first with a blocked `DequantizeLinear`."""
BLOCKED_OPTIONS = ("rounding", "block", "symmetric", "exact_activations")


def accuracy_level(options: Options) -> Mapping[str, str]:
    """Whether ONNX Runtime multiplies blocked weights with float32 (1) or with bytes (4)."""
    return {"session.qdq_matmulnbits_accuracy_level": "1" if options.exact_activations else "4"}


def rounds_activations(options: Options) -> bool:
    """Whether it multiplies them with bytes."""
    return not options.exact_activations
