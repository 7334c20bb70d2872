"""`fp16`: weights and computation in half precision."""

from __future__ import annotations

from xattn_export.quantize.base.mode_spec import ModeSpec
from xattn_export.quantize.passes.half import CONVERT_TO_HALF

__all__ = ["FP16"]

FP16 = ModeSpec("fp16", "fp16", (CONVERT_TO_HALF,), scope="graph", observes=frozenset({"magnitudes"}))
