"""`fp32`: a graph or layer stays as it is."""

from __future__ import annotations

from xattn_export.quantize.base.mode_spec import BASELINE, ModeSpec

__all__ = ["FP32"]

FP32 = ModeSpec(BASELINE, "fp32")
