"""What has to be observed before graphs can be quantized by their plans, and the observing of it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import numpy as np
from onnx import ModelProto

from xattn_export.graph.generator import GENERATOR
from xattn_export.graph.reading import read_graph
from xattn_export.quantize.base.layers import Layer, Observed, find_layers
from xattn_export.quantize.base.options import GraphPlan, KeyValuePrecision, Options
from xattn_export.quantize.base.prepare import Constants, prepare_products
from xattn_export.quantize.calibration.examples import Examples, Tell, golden_examples, largest_magnitudes, observe
from xattn_export.quantize.calibration.observers import (
    ChannelMeans,
    ChannelPeaks,
    ChannelProducts,
    HeadPeaks,
    Histogram,
    Observer,
)
from xattn_export.quantize.calibration.seen import Seen
from xattn_export.quantize.passes.half import (
    FP16_LARGEST,
    float_tensors,
    largest_weights,
    overflowing_nodes,
    with_sums_of_squares,
)
from xattn_export.quantize.passes.key_values import StoredSeries, is_turned, largest_stored, series_of, stored_name
from xattn_export.quantize.passes.static import watched_tensors
from xattn_runtime.bundle.folder import Bundle
from xattn_runtime.bundle.manifest import ATTENTION_ROLE, WHOLE_ROLES
from xattn_runtime.errors import UserError

__all__ = ["MOST_PRODUCT_BYTES", "calibrate", "needs_examples"]

MOST_PRODUCT_BYTES = 768 * 2**20
"""The most memory that products of channels take; more go in several passes, and one larger than that is not made."""


@dataclass(frozen=True)
class _Watch:
    """What is kept of the tensors of one graph."""

    histograms: dict[str, Histogram] = field(default_factory=dict)
    products: dict[str, ChannelProducts] = field(default_factory=dict)
    peaks: dict[str, ChannelPeaks] = field(default_factory=dict)
    means: dict[str, ChannelMeans] = field(default_factory=dict)


def needs_examples(plans: Mapping[str, GraphPlan], options: Options) -> list[str]:
    """What of the plans cannot be done without calibration data, in words; nothing where all can."""
    modes = frozenset().union(*(plan.modes for plan in plans.values()))
    reasons = ["mode int8-static"] if "int8-static" in modes else []
    if options.rounding == "gptq" and modes - {"fp32", "fp16"}:
        reasons.append("rounding gptq")
    reasons += ["smoothing"] if options.smooth and "int8" in modes else []
    return reasons + [f"{name} int8" for name in ("cross", "cache") if getattr(options, name) == "int8"]


def calibrate(
    bundle: Bundle, plans: Mapping[str, GraphPlan], options: Options, examples: Examples | None, tell: Tell
) -> dict[str, Seen]:
    """What the plans need to know, by role. Without `examples` fp16 is scanned, and means taken, on the golden inputs.

    Raises UserError where values are not finite.
    """
    some = examples or golden_examples(bundle)
    overflowing = _scan(bundle, plans, some, tell)
    observed = _observe(bundle, plans, options, some, tell)
    key_values = _key_values(bundle, options, some, tell)
    nothing, none = Observed(), frozenset[str]()
    return {role: Seen(observed.get(role, nothing), overflowing.get(role, none), key_values) for role in plans}


def _scan(bundle: Bundle, plans: Mapping[str, GraphPlan], examples: Examples, tell: Tell) -> dict[str, frozenset[str]]:
    """Role of an fp16 graph → the nodes that overflow."""
    roles = [role for role, plan in plans.items() if plan.mode == "fp16"]
    if not roles:
        return {}
    sources = {role: bundle.file(bundle.manifest.graphs[role].file) for role in roles}
    graphs = {role: read_graph(source) for role, source in sources.items()}
    scanned = {role: with_sums_of_squares(graph) for role, graph in graphs.items()}
    tensors = {role: (graph, sorted(float_tensors(graph))) for role, graph in scanned.items()}
    largest = largest_magnitudes(bundle, examples, tensors, tell)
    for role in roles:
        largest[role] |= largest_weights(graphs[role], sources[role].parent)
    return {role: frozenset(overflowing_nodes(graphs[role], largest[role])) for role in roles}


def _key_values(bundle: Bundle, options: Options, examples: Examples, tell: Tell) -> dict[str, StoredSeries]:
    """What is to be stored in fewer bits, by its `stored_name`.

    Raises UserError where the bundle has no such keys and values, or fp16 does not hold them.
    """
    wanted = {"cross": options.cross, "image": options.cross, "present": options.cache}
    asked = {series: precision for series, precision in wanted.items() if precision != "fp32"}
    if not asked:
        return {}
    graphs: dict[str, ModelProto] = {}
    peaks: dict[str, dict[str, HeadPeaks]] = {}
    for role, graph in bundle.manifest.graphs.items():
        if role in (GENERATOR, ATTENTION_ROLE, *WHOLE_ROLES):
            continue
        model = read_graph(bundle.file(graph.file))
        names = [value.name for value in model.graph.input if series_of(value.name) in ("cross", "image")]
        names += [value.name for value in model.graph.output if series_of(value.name) == "present"]
        if chosen := [name for name in names if series_of(name) in asked]:
            graphs[role], peaks[role] = model, {name: HeadPeaks() for name in chosen}
    for option, series in (("cross", ("cross", "image")), ("cache", ("present",))):
        found = {series_of(name) for watched in peaks.values() for name in watched}
        if asked.keys() & set(series) and not found & set(series):
            raise UserError(
                f"{option}: expected a bundle whose graphs hand on keys and values of that kind, found none; leave it"
            )
    observers = {role: {name: [one] for name, one in watched.items()} for role, watched in peaks.items()}
    observe(bundle, examples, {role: (graphs[role], observers[role]) for role in graphs}, tell)
    return {
        stored_name(name): _stored_series(role, name, asked[series_of(name) or ""], one, graphs[role])
        for role, watched in peaks.items()
        for name, one in watched.items()
    }


def _stored_series(
    role: str, name: str, precision: KeyValuePrecision, observer: HeadPeaks, model: ModelProto
) -> StoredSeries:
    if observer.peaks is None:
        raise UserError(f"{role}: {name}: expected calibration data that reaches it, found none that does; take others")
    if precision == "int8":
        scales = np.where(observer.peaks > 0, observer.peaks / largest_stored(name), 1).astype(np.float32)
        return StoredSeries(precision, scales, is_turned(model, name))
    if observer.peaks.max() > FP16_LARGEST / 2:
        raise UserError(
            f"{role}: {name}: expected magnitudes well within fp16, at most {FP16_LARGEST / 2:g}, found "
            f"{observer.peaks.max():g}; leave them in fp32"
        )
    return StoredSeries(precision)


def _observe(
    bundle: Bundle, plans: Mapping[str, GraphPlan], options: Options, examples: Examples, tell: Tell
) -> dict[str, Observed]:
    sources = {role: bundle.file(bundle.manifest.graphs[role].file) for role in plans}
    watches = {}
    for role, plan in plans.items():
        if plan.modes - {"fp32", "fp16"}:
            prepared = read_graph(sources[role])
            prepare_products(prepared, sources[role].parent)
            layers = find_layers(prepared, sources[role].parent)
            watches[role] = _watch(prepared, layers, plan, options, Constants(prepared.graph, sources[role].parent))
    passes = list(_passes(watches))
    for number, part in enumerate(passes):

        def told(what: str, share: float, number: int = number) -> None:
            tell(what, (number + share) / len(passes))

        graphs = {role: (read_graph(sources[role]), observers) for role, observers in part.items()}
        observe(bundle, examples, graphs, told)
    return {role: _observed(watch, options) for role, watch in watches.items()}


def _passes(watches: Mapping[str, _Watch]) -> Iterator[dict[str, dict[str, list[Observer]]]]:
    """What to observe in each pass over the examples: products of channels in parts, the rest in the first."""
    part: dict[str, dict[str, list[Observer]]] = {}
    for role, watch in watches.items():
        for observers in (watch.histograms, watch.peaks, watch.means):
            for name, observer in observers.items():
                part.setdefault(role, {}).setdefault(name, []).append(observer)
    used = 0
    for role, watch in watches.items():
        for name, products in watch.products.items():
            if part and used + products.bytes > MOST_PRODUCT_BYTES:
                yield part
                part, used = {}, 0
            part.setdefault(role, {}).setdefault(name, []).append(products)
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
        watch.means[layer.found] = ChannelMeans()
        if options.smooth and plan.mode_of(layer.name) == "int8":
            watch.peaks[layer.found] = ChannelPeaks()
        products = ChannelProducts(constants.dims(layer.weights)[0])
        if options.rounding == "gptq" and products.bytes <= MOST_PRODUCT_BYTES:
            watch.products[layer.found] = products
    return watch


def _observed(watch: _Watch, options: Options) -> Observed:
    products = {name: observer.mean() for name, observer in watch.products.items()}
    peaks = {name: observer.peaks for name, observer in watch.peaks.items()}
    means = {name: observer.mean() for name, observer in watch.means.items()}
    return Observed(
        {name: one.range(options.range_method, options.percentile) for name, one in watch.histograms.items()},
        {name: mean for name, mean in products.items() if mean is not None},
        {name: peak for name, peak in peaks.items() if peak is not None},
        {name: mean for name, mean in means.items() if mean is not None},
    )
