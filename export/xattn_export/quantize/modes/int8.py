"""`int8`: products and wide convolutions in int8, activations quantized as they come; the rest stored as int8."""

from __future__ import annotations

from xattn_export.quantize.base.mode_spec import ModeSpec
from xattn_export.quantize.passes.biases import CORRECT_BIASES
from xattn_export.quantize.passes.convolutions import QUANTIZE_CONVOLUTIONS
from xattn_export.quantize.passes.products import QUANTIZE_PRODUCTS
from xattn_export.quantize.passes.smooth import SMOOTH_PRODUCTS
from xattn_export.quantize.passes.tied import SHARE_TIED
from xattn_export.quantize.passes.weights import STORE_CONVOLUTIONS, STORE_EMBEDDINGS, STORE_RECURRENCES

__all__ = ["INT8"]

INT8 = ModeSpec(
    "int8",
    "int8",
    (
        SMOOTH_PRODUCTS,
        QUANTIZE_CONVOLUTIONS,
        STORE_CONVOLUTIONS,
        STORE_EMBEDDINGS,
        STORE_RECURRENCES,
        QUANTIZE_PRODUCTS,
        SHARE_TIED,
        CORRECT_BIASES,
    ),
    observes=frozenset({"channels", "peaks"}),
    options=("rounding", "smooth"),
    keeps_pre_head=True,
    is_searched=True,
    rounds_activations=lambda options: True,
)
