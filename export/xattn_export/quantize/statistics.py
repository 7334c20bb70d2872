"""What has to be observed before graphs can be quantized by their plans, and the observing of it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from onnx import ModelProto

from xattn_export.inspect import read_graph
from xattn_export.quantize.calibrate import Examples, Tell, golden_examples, largest_magnitudes, observe
from xattn_export.quantize.graph import Seen
from xattn_export.quantize.half import float_tensors, overflowing_nodes
from xattn_export.quantize.layers import Layer, Observed, find_layers
from xattn_export.quantize.observe import ChannelPeaks, ChannelProducts, Histogram, Observer
from xattn_export.quantize.options import GraphPlan, Options
from xattn_export.quantize.prepare import Constants, prepare_products
from xattn_export.quantize.static import watched_tensors
from xattn_runtime.bundle import Bundle

__all__ = ["calibrate", "needs_examples"]

_MOST_PRODUCT_BYTES = 768 * 2**20
"""The most memory that products of channels may take; more go in several passes over the examples."""


@dataclass(frozen=True)
class _Watch:
    """What is kept of the tensors of one graph."""

    histograms: dict[str, Histogram] = field(default_factory=dict)
    products: dict[str, ChannelProducts] = field(default_factory=dict)
    peaks: dict[str, ChannelPeaks] = field(default_factory=dict)


def needs_examples(plans: Mapping[str, GraphPlan], options: Options) -> list[str]:
    """What of the plans cannot be done without calibration data, in words; nothing where all can."""
    modes = frozenset().union(*(plan.modes for plan in plans.values()))
    reasons = ["mode int8-static"] if "int8-static" in modes else []
    if options.rounding == "gptq" and modes - {"fp32", "fp16"}:
        reasons.append("rounding gptq")
    return reasons + (["smoothing"] if options.smooth and "int8" in modes else [])


def calibrate(
    bundle: Bundle, plans: Mapping[str, GraphPlan], options: Options, examples: Examples | None, tell: Tell
) -> dict[str, Seen]:
    """What the plans need to know, by role. Without `examples` fp16 is scanned on the golden inputs.

    Raises UserError where values are not finite.
    """
    overflowing = _scan(bundle, plans, examples or golden_examples(bundle), tell)
    observed = _observe(bundle, plans, options, examples, tell) if examples is not None else {}
    return {role: Seen(observed.get(role, Observed()), frozenset(overflowing.get(role, frozenset()))) for role in plans}


def _scan(bundle: Bundle, plans: Mapping[str, GraphPlan], examples: Examples, tell: Tell) -> dict[str, set[str]]:
    """Role of an fp16 graph → the nodes that overflow."""
    roles = [role for role, plan in plans.items() if plan.mode == "fp16"]
    if not roles:
        return {}
    graphs = {role: read_graph(bundle.file(bundle.manifest.graphs[role].file)) for role in roles}
    tensors = {role: (graph, sorted(float_tensors(graph))) for role, graph in graphs.items()}
    largest = largest_magnitudes(bundle, examples, tensors, tell)
    return {role: overflowing_nodes(graphs[role], largest[role]) for role in roles}


def _observe(
    bundle: Bundle, plans: Mapping[str, GraphPlan], options: Options, examples: Examples, tell: Tell
) -> dict[str, Observed]:
    found = {}
    for role, plan in plans.items():
        if not needs_examples({role: plan}, options):
            continue
        source = bundle.file(bundle.manifest.graphs[role].file)
        prepared = read_graph(source)
        prepare_products(prepared, source.parent)
        layers, constants = find_layers(prepared, source.parent), Constants(prepared.graph, source.parent)
        watch = _watch(prepared, layers, plan, options, constants)
        for observers in _passes(watch):
            observe(bundle, examples, {role: (read_graph(source), observers)}, tell)
        found[role] = _observed(watch, options)
    return found


def _passes(watch: _Watch) -> Iterator[dict[str, list[Observer]]]:
    """What to observe in each pass over the examples: products of channels in parts, the rest in the first."""
    part: dict[str, list[Observer]] = {}
    for observers in (watch.histograms, watch.peaks):
        for name, observer in observers.items():
            part.setdefault(name, []).append(observer)
    used = 0
    for name, products in watch.products.items():
        if part and used + products.bytes > _MOST_PRODUCT_BYTES:
            yield part
            part, used = {}, 0
        part.setdefault(name, []).append(products)
        used += products.bytes
    if part:
        yield part


def _watch(model: ModelProto, layers: list[Layer], plan: GraphPlan, options: Options, constants: Constants) -> _Watch:
    """Observers for all that the plan needs to know of a graph."""
    watch = _Watch()
    static = [layer for layer in layers if plan.mode_of(layer.name) == "int8-static"]
    watch.histograms.update({name: Histogram() for name in watched_tensors(model, static)})
    for layer in layers:
        if layer.kind != "product" or plan.mode_of(layer.name) in ("fp32", "fp16"):
            continue
        if options.smooth and plan.mode_of(layer.name) == "int8":
            watch.peaks[layer.found] = ChannelPeaks()
        if options.rounding == "gptq":
            watch.products[layer.found] = ChannelProducts(constants.dims(layer.weights)[0])
    return watch


def _observed(watch: _Watch, options: Options) -> Observed:
    products = {name: observer.mean() for name, observer in watch.products.items()}
    peaks = {name: observer.peaks for name, observer in watch.peaks.items()}
    return Observed(
        {name: one.range(options.range_method, options.percentile) for name, one in watch.histograms.items()},
        {name: mean for name, mean in products.items() if mean is not None},
        {name: peak for name, peak in peaks.items() if peak is not None},
    )
