"""One graph by its plan: every layer in the mode that it is to have. It knows graphs and plans, and no bundle."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from onnx import ModelProto

from xattn_export.quantize.base.layers import Observed, Rounder, find_layers
from xattn_export.quantize.base.options import GraphPlan, Mode, Options
from xattn_export.quantize.base.prepare import Constants, prepare_products
from xattn_export.quantize.base.rounding import Grid
from xattn_export.quantize.calibration.seen import Seen
from xattn_export.quantize.passes.biases import correct_biases
from xattn_export.quantize.passes.blocks import quantize_blocks
from xattn_export.quantize.passes.convolutions import quantize_convolutions
from xattn_export.quantize.passes.half import convert_to_half
from xattn_export.quantize.passes.key_values import store_key_values
from xattn_export.quantize.passes.products import quantize_products
from xattn_export.quantize.passes.smooth import smooth_products
from xattn_export.quantize.passes.static import quantize_static
from xattn_export.quantize.passes.tied import TiedPair, find_tied, share_tied
from xattn_export.quantize.passes.weights import store_convolutions, store_embeddings, store_recurrences

__all__ = ["LayerCounts", "quantize_graph"]


@dataclass(frozen=True)
class LayerCounts:
    """How many layers became what.

    int4_products, int8_weight_products: those of which only the weights are of so few bits. int8_products,
    int8_convolutions: computed in int8, ranges as they come. static_products, static_convolutions: computed in int8,
    ranges fixed. int8_stored_convolutions, int8_embeddings, int8_recurrences: stored as int8, computed in float32.
    tied_tables: embeddings stored once with the product that they are also the factor of. corrected_biases: those of
    products that make up for rounded weights. fp16_nodes: computed so.
    """

    int4_products: int = 0
    int8_weight_products: int = 0
    int8_products: int = 0
    static_products: int = 0
    int8_convolutions: int = 0
    static_convolutions: int = 0
    int8_stored_convolutions: int = 0
    int8_embeddings: int = 0
    int8_recurrences: int = 0
    tied_tables: int = 0
    corrected_biases: int = 0
    fp16_nodes: int = 0


def quantize_graph(model: ModelProto, plan: GraphPlan, options: Options, seen: Seen, folder: Path) -> LayerCounts:
    """Quantize `model`, whose weights may lie in `folder`, in place; then it holds them. What became of its layers."""
    stored = store_key_values(model, seen.key_values)
    if plan.mode == "fp16":
        kept = seen.overflowing | stored | {name for name, mode in plan.layers.items() if mode == "fp32"}
        counts = LayerCounts(fp16_nodes=convert_to_half(model, kept, folder))
    elif plan.modes == {"fp32"}:
        counts = LayerCounts()
    else:
        counts = _quantize_layers(model, plan, options, seen.observed, folder)
    Constants(model.graph, folder).bring_in()
    return counts


def _quantize_layers(
    model: ModelProto, plan: GraphPlan, options: Options, observed: Observed, folder: Path
) -> LayerCounts:
    prepare_products(model, folder)
    names = _names_by_mode(model, plan, folder)
    tied = [pair for pair in find_tied(model, folder) if _is_shared(pair, names)]
    lookups, heads = {pair.lookup.name for pair in tied}, {pair.product.name for pair in tied}
    # No bytes can be looked up in four bits.
    names["int8"] |= names["int4"] & heads
    names["int4"] -= heads
    small = set().union(*names.values())
    in_int8 = names["int8"] | names["int4"]
    if options.smooth:
        observed = smooth_products(model, options.smooth, observed, folder, only=names["int8"] - heads)
    rounder = Rounder(options.rounding, observed.without_hessians({pair.product.found for pair in tied}))
    static = quantize_static(model, folder, rounder=rounder, only=names["int8-static"]) if names["int8-static"] else {}
    convolutions = quantize_convolutions(model, folder, only=in_int8)
    stored = store_convolutions(model, folder, only=small)
    embeddings = store_embeddings(model, folder, only=small - lookups)
    recurrences = store_recurrences(model, folder, only=small)
    blocks = {
        bits: quantize_blocks(
            model, folder, grid=Grid(bits, options.block, options.symmetric), rounder=rounder, only=names[mode]
        )
        for bits, mode in _BITS.items()
    }
    products = quantize_products(model, folder, rounder=rounder, only=small)
    shared = share_tied(model, tied)
    corrected = correct_biases(model, rounder.shifts, folder)
    return LayerCounts(
        int4_products=blocks[4],
        int8_weight_products=blocks[8],
        int8_products=products,
        static_products=static.get("product", 0),
        int8_convolutions=convolutions,
        static_convolutions=static.get("convolution", 0),
        int8_stored_convolutions=stored,
        int8_embeddings=embeddings + shared,
        int8_recurrences=recurrences,
        tied_tables=shared,
        corrected_biases=corrected,
    )


def _names_by_mode(model: ModelProto, plan: GraphPlan, folder: Path) -> dict[Mode, set[str]]:
    """The layers that each mode is to have."""
    names: dict[Mode, set[str]] = {mode: set() for mode in ("int8", "int8-static", "int8-weight", "int4")}
    for layer in find_layers(model, folder):
        names.get(plan.mode_of(layer.name), set()).add(layer.name)
    return names


def _is_shared(pair: TiedPair, names: Mapping[Mode, set[str]]) -> bool:
    """Whether both become smaller: then the product's bytes are looked up."""
    small = set().union(*names.values())
    return pair.lookup.name in small and pair.product.name in small


_BITS: Mapping[int, Mode] = {4: "int4", 8: "int8-weight"}
