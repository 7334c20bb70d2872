"""`int8-static`: products and convolutions in int8, ranges fixed by calibration; it is the form that NPUs take."""

from __future__ import annotations

from xattn_export.quantize.base.mode_spec import ModeSpec
from xattn_export.quantize.passes.biases import CORRECT_BIASES
from xattn_export.quantize.passes.products import QUANTIZE_PRODUCTS
from xattn_export.quantize.passes.static import FIX_RANGES
from xattn_export.quantize.passes.tied import SHARE_TIED
from xattn_export.quantize.passes.weights import STORE_CONVOLUTIONS, STORE_EMBEDDINGS, STORE_RECURRENCES

__all__ = ["INT8_STATIC"]

# Signed weights whose pairs are not kept within bounds, as those of `int8` are, overflow the 16-bit sums of x86 without
# VNNI: on such processors alone the runtime sets this.
_WIDE_SUMS = {"session.x64quantprecision": "1"}

# Its devices require all layers in int8: none is left out.
INT8_STATIC = ModeSpec(
    "int8-static",
    "int8",
    (
        FIX_RANGES,
        STORE_CONVOLUTIONS,
        STORE_EMBEDDINGS,
        STORE_RECURRENCES,
        QUANTIZE_PRODUCTS,
        SHARE_TIED,
        CORRECT_BIASES,
    ),
    observes=frozenset({"ranges", "channels"}),
    options=("rounding", "range_method", "percentile"),
    session_options=lambda options: _WIDE_SUMS,
    rounds_activations=lambda options: True,
)
