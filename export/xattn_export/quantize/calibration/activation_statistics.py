"""What has to be observed before graphs can be quantized by their plans, and the observing of it."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from xattn_export.graph.editing import graph_parts
from xattn_export.quantize.base.mode_spec import Observation
from xattn_export.quantize.base.options import GraphPlan, KeyValuePrecision, Options
from xattn_export.quantize.base.passing import Observed
from xattn_export.quantize.base.prepared import PreparedBundle, PreparedGraph
from xattn_export.quantize.calibration.examples import Examples, golden_examples, largest_magnitudes, observe
from xattn_export.quantize.calibration.observers import (
    ChannelMeans,
    ChannelPeaks,
    ChannelProducts,
    HeadPeaks,
    Histogram,
    Observer,
)
from xattn_export.quantize.calibration.result import Calibration
from xattn_export.quantize.modes.table import specs_of
from xattn_export.quantize.passes.half import (
    FP16_LARGEST,
    float_tensors,
    largest_weights,
    overflowing_nodes,
    with_sums_of_squares,
)
from xattn_export.quantize.passes.key_values import (
    StoredSeries,
    is_transposed,
    largest_stored,
    series_of,
    stored_name,
)
from xattn_export.quantize.passes.static import tensors_with_ranges
from xattn_runtime.errors import UserError
from xattn_runtime.progress import Progress

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

    @property
    def is_empty(self) -> bool:
        """Whether there is nothing to observe."""
        return not (self.histograms or self.products or self.peaks or self.means)


def needs_examples(plans: Mapping[str, GraphPlan], options: Options) -> list[str]:
    """What of the plans cannot be done without calibration data, in words; nothing where all can."""
    specs = specs_of(frozenset().union(*(plan.modes for plan in plans.values())))
    reasons = [f"mode {spec.name}" for spec in specs if "ranges" in spec.observes]
    if options.rounding == "gptq" and any("channels" in spec.observes for spec in specs):
        reasons.append("rounding gptq")
    reasons += ["smoothing"] if options.smooth and any("peaks" in spec.observes for spec in specs) else []
    return reasons + [f"{name} int8" for name, precision in options.key_values.items() if precision == "int8"]


def calibrate(
    source: PreparedBundle,
    plans: Mapping[str, GraphPlan],
    options: Options,
    examples: Examples | None,
    progress: Progress,
) -> dict[str, Calibration]:
    """What the plans need to know, by role. Without `examples` the golden inputs stand in for what needs no data.

    Raises UserError where values are not finite.
    """
    some = examples or golden_examples(source.bundle)
    overflowing = _scan(source, plans, some, progress)
    observed = _observe(source, plans, options, some, progress)
    key_values = _key_values(source, options, some, progress)
    nothing, none = Observed(), frozenset[str]()
    return {role: Calibration(observed.get(role, nothing), overflowing.get(role, none), key_values) for role in plans}


def _observes(observation: Observation, modes: Collection[str]) -> bool:
    """Whether one of `modes` needs that."""
    return any(observation in spec.observes for spec in specs_of(modes))


def _scan(
    source: PreparedBundle, plans: Mapping[str, GraphPlan], examples: Examples, progress: Progress
) -> dict[str, frozenset[str]]:
    """Role of a graph in half precision → the nodes that overflow."""
    graphs = {role: source.graphs[role] for role, plan in plans.items() if _observes("magnitudes", {plan.mode})}
    if not graphs:
        return {}
    watched = {}
    for role, graph in graphs.items():
        scanned = with_sums_of_squares(graph.model)
        watched[role] = scanned, sorted(float_tensors(graph_parts(scanned)))
    largest = largest_magnitudes(source.bundle, examples, watched, progress)
    return {
        role: frozenset(overflowing_nodes(graph.parts, {**largest[role], **largest_weights(graph.parts)}))
        for role, graph in graphs.items()
    }


def _key_values(
    source: PreparedBundle, options: Options, examples: Examples, progress: Progress
) -> dict[str, StoredSeries]:
    """What is to be stored in fewer bits, by its `stored_name`.

    Raises UserError where the bundle has no such keys and values, or fp16 does not hold them.
    """
    series = {"cross": ("cross", "image"), "cache": ("present",)}
    precisions = {one: precision for name, precision in options.key_values.items() for one in series[name]}
    if not precisions:
        return {}
    peaks: dict[str, dict[str, HeadPeaks]] = {}
    for role, graph in source.graphs.items():
        names = [value.name for value in graph.parts.inputs if series_of(value.name) in ("cross", "image")]
        names += [value.name for value in graph.parts.outputs if series_of(value.name) == "present"]
        if chosen := [name for name in names if series_of(name) in precisions]:
            peaks[role] = {name: HeadPeaks() for name in chosen}
    for option in options.key_values:
        if not {series_of(name) for watched in peaks.values() for name in watched}.intersection(series[option]):
            raise UserError(
                f"{option}: expected a bundle whose graphs hand on keys and values of that kind, found none; leave it"
            )
    watched = {
        role: (source.graphs[role].model, {name: [one] for name, one in ones.items()}) for role, ones in peaks.items()
    }
    observe(source.bundle, examples, watched, progress)
    return {
        stored_name(name): _stored_series(source.graphs[role], name, precisions[series_of(name) or ""], one.peaks)
        for role, ones in peaks.items()
        for name, one in ones.items()
    }


def _stored_series(
    graph: PreparedGraph, name: str, precision: KeyValuePrecision, peaks: NDArray[np.float32] | None
) -> StoredSeries:
    where = f"{graph.role}: {name}"
    if peaks is None:
        raise UserError(f"{where}: expected calibration data that reaches it, found none that does; take others")
    if precision == "int8":
        scales = np.where(peaks > 0, peaks / largest_stored(name), 1).astype(np.float32)
        return StoredSeries(precision, scales, is_transposed(graph.parts, name))
    if peaks.max() > FP16_LARGEST / 2:
        raise UserError(
            f"{where}: expected magnitudes well within fp16, at most {FP16_LARGEST / 2:g}, found "
            f"{peaks.max():g}; leave them in fp32"
        )
    return StoredSeries(precision)


def _observe(
    source: PreparedBundle, plans: Mapping[str, GraphPlan], options: Options, examples: Examples, progress: Progress
) -> dict[str, Observed]:
    watches = {
        role: watch
        for role, plan in plans.items()
        if not (watch := _watch(source.graphs[role], plan, options)).is_empty
    }
    passes = list(_passes(watches))
    for number, part in enumerate(passes):

        def report_series(what: str, share: float, number: int = number) -> None:
            progress(what, (number + share) / len(passes))

        watched = {role: (source.graphs[role].model, observers) for role, observers in part.items()}
        observe(source.bundle, examples, watched, report_series)
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


def _watch(graph: PreparedGraph, plan: GraphPlan, options: Options) -> _Watch:
    """Observers for all that the plan needs to know of a graph."""
    watch, constants = _Watch(), graph.products.constants()
    with_ranges = [layer for layer in graph.layers if _observes("ranges", {plan.mode_of(layer.name)})]
    watch.histograms.update({name: Histogram() for name in tensors_with_ranges(graph.products, with_ranges)})
    for layer in graph.layers:
        modes = {plan.mode_of(layer.name)}
        if layer.kind != "product" or not _observes("channels", modes):
            continue
        watch.means[layer.input] = ChannelMeans()
        if options.smooth and _observes("peaks", modes):
            watch.peaks[layer.input] = ChannelPeaks()
        products = ChannelProducts(constants.dims(layer.weights)[0])
        if options.rounding == "gptq" and products.bytes <= MOST_PRODUCT_BYTES:
            watch.products[layer.input] = products
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
