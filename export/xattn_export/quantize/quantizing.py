"""One graph by its plan: every layer in the mode that it is to have. It knows graphs and plans, and no bundle."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from xattn_export.graph.editing import GraphParts
from xattn_export.quantize.base.options import GraphPlan, Mode, Options
from xattn_export.quantize.base.passing import COUNTS, Assignment, Draft, TiedPair
from xattn_export.quantize.base.prepared import PreparedGraph
from xattn_export.quantize.calibration.result import Calibration
from xattn_export.quantize.modes.table import passes_of, spec_of, specs_of
from xattn_export.quantize.passes.key_values import store_key_values
from xattn_export.quantize.passes.tied import find_tied

__all__ = ["quantize_graph"]


def quantize_graph(
    graph: PreparedGraph, plan: GraphPlan, options: Options, calibration: Calibration
) -> tuple[GraphParts, dict[str, int]]:
    """The graph by its plan, and how many of its layers became what, by the names of `COUNTS`.

    Every pass of the plan's modes is run once, over those layers whose mode has it.
    """
    is_by_layer = any(spec.scope == "layer" for spec in specs_of(plan.modes))
    parts, float_nodes = store_key_values(graph.products if is_by_layer else graph.parts, calibration.key_values)
    parts = _with_prepared_last(parts, graph)
    modes = {layer.name: plan.mode_of(layer.name) for layer in graph.layers}
    tied = _stored_once(find_tied(parts, graph.layers), modes) if is_by_layer else ()
    modes |= {pair.product.name: _mode_of_tied(modes[pair.product.name]) for pair in tied}
    unquantized = frozenset(name for name, mode in plan.layers.items() if not spec_of(mode).passes)
    # What a lookup shares with a product is rounded without regard to what the product alone is multiplied with.
    observed = calibration.observed.without_hessians({pair.product.input for pair in tied})
    draft = Draft(parts, observed, float_nodes | unquantized | calibration.overflowing)
    for one in passes_of(plan.modes.union(modes.values())):
        layers = tuple(layer for layer in graph.layers if one in spec_of(modes[layer.name]).passes)
        draft = one.run(draft, Assignment(layers, options, tied))
    return draft.graph, {**dict.fromkeys(COUNTS, 0), **draft.counts}


def _with_prepared_last(parts: GraphParts, graph: PreparedGraph) -> GraphParts:
    """`parts` with the constants that preparing `graph` made after all others: files of one content have one order."""
    made = graph.products.tensors.keys() - graph.parts.tensors.keys()
    return replace(parts, tensors=dict(sorted(parts.tensors.items(), key=lambda item: item[0] in made)))


def _stored_once(pairs: tuple[TiedPair, ...], modes: Mapping[str, Mode]) -> tuple[TiedPair, ...]:
    """Those of which both become smaller: then the product's bytes are looked up."""
    return tuple(
        pair for pair in pairs if spec_of(modes[pair.lookup.name]).passes and spec_of(modes[pair.product.name]).passes
    )


def _mode_of_tied(mode: Mode) -> Mode:
    """The mode of a product whose table is looked up, too."""
    return spec_of(mode).tied_mode or mode
