"""`int4`: the weights of products in 4 bits, a scale for every block; the rest as in `int8`."""

from __future__ import annotations

from xattn_export.quantize.base.mode_spec import ModeSpec
from xattn_export.quantize.modes.blocked import BLOCKED_OPSET, BLOCKED_OPTIONS, accuracy_level, rounds_activations
from xattn_export.quantize.passes.biases import CORRECT_BIASES
from xattn_export.quantize.passes.blocks import STORE_4_BIT_BLOCKS
from xattn_export.quantize.passes.convolutions import QUANTIZE_CONVOLUTIONS
from xattn_export.quantize.passes.products import QUANTIZE_PRODUCTS
from xattn_export.quantize.passes.tied import SHARE_TIED
from xattn_export.quantize.passes.weights import STORE_CONVOLUTIONS, STORE_EMBEDDINGS, STORE_RECURRENCES

__all__ = ["INT4"]

# No bytes can be looked up in four bits: a table that is a factor and looked up, too, is stored as int8.
INT4 = ModeSpec(
    "int4",
    "int4",
    (
        QUANTIZE_CONVOLUTIONS,
        STORE_CONVOLUTIONS,
        STORE_EMBEDDINGS,
        STORE_RECURRENCES,
        STORE_4_BIT_BLOCKS,
        QUANTIZE_PRODUCTS,
        SHARE_TIED,
        CORRECT_BIASES,
    ),
    lowest_opset=BLOCKED_OPSET,
    observes=frozenset({"channels"}),
    options=BLOCKED_OPTIONS,
    keeps_pre_head=True,
    tied_mode="int8",
    milder="int8",
    is_searched=True,
    session_options=accuracy_level,
    rounds_activations=rounds_activations,
)
