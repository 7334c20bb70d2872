"""Selects the smallest or fastest bundle within a budget: measures mixes of modes by the task metric, confirms one."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from xattn_export.quantize.base.options import Options
from xattn_export.quantize.budget.measuring import (
    Bench,
    Journal,
    Split,
    relative_loss,
    search_identity,
)
from xattn_export.quantize.budget.search import Measured, Prefer, Space, candidates, frontier, named
from xattn_export.quantize.bundle import open_source
from xattn_export.quantize.modes.table import searched_modes, spec_of
from xattn_runtime.errors import UserError, XattnError
from xattn_runtime.progress import Progress, silent

__all__ = ["AutoReport", "quantize_to_budget"]

_RESAMPLES = 2000


@dataclass(frozen=True)
class AutoReport:
    """What was chosen, what it loses on samples that the search has not seen, and all that was measured.

    budget, loss, unseen_loss, interval: shares of the fp32 bundle's score. interval: 95 %, by bootstrap over samples.
    """

    bundle: Path
    metric: str
    budget: float
    prefer: Prefer
    chosen: Measured
    size_ratio: float
    unseen: str
    unseen_scores: tuple[float, float]
    unseen_loss: float
    interval: tuple[float, float]
    frontier: tuple[Measured, ...]
    measured: tuple[Measured, ...]

    def to_dict(self) -> dict[str, Any]:
        """As JSON values."""
        return {**asdict(self), "bundle": str(self.bundle)}


def quantize_to_budget(
    source: Path,
    output: Path,
    calibration: Split,
    unseen: Split,
    *,
    budget: float,
    prefer: Prefer = "size",
    options: Options | None = None,
    overwrite: bool = False,
    command: str = "",
    on_measured: Callable[[Measured], None] | None = None,
    progress: Progress = silent,
) -> AutoReport:
    """Make the bundle `output` of `source` that loses at most `budget`, the best of those measured.

    Args:
        calibration: split that mixes are measured on. unseen: split that the choice is confirmed on.
        budget: the largest relative loss of the metric, such as 0.01.
        prefer: what is to be small: the bundle's size, the time of an answer, or the peak memory.
        options: how each mode does what it does.
        on_measured: receives every mix as soon as it is measured.
        progress: receives the current step; a search has no known length, so the share is that of its first part.

    Raises:
        UserError: a budget below 0 or not below 1, `source` quantized already, nothing to quantize, or scores that
            are all 0.
        XattnError: nothing within the budget; names the nearest mix. The measurements are kept for another try.
        OutputError: as `quantize_bundle`.
    """
    if not 0 <= budget < 1:
        raise UserError(f"--budget: expected a share of at least 0 and less than 1, such as 0.01, found {budget:g}")
    prepared = open_source(source, output, overwrite=overwrite)
    if not any(graph.layers for graph in prepared.graphs.values()):
        raise UserError(
            f"{prepared.bundle.path}: expected layers that a search can make smaller, found none: all are small, or of "
            "kinds that stay as they are; use the bundle as it is"
        )
    journal = Journal.open(output, search_identity(prepared.bundle, calibration, options or Options()))
    bench = Bench(prepared, calibration, options or Options(), journal, progress)
    results: list[Measured] = []
    space = Space(
        dict.fromkeys(prepared.graphs, searched_modes()),
        {role: [layer.name for layer in graph.layers] for role, graph in prepared.graphs.items()},
        {mode: spec_of(mode).milder for mode in searched_modes()},
    )
    for measured in candidates(space, budget, prefer, bench.measure):
        results.append(measured)
        if on_measured is not None:
            on_measured(measured)
    ranked = frontier(results, budget, prefer)
    if not ranked:
        raise XattnError(_impossible(results, budget))
    report = _confirm(output, bench, unseen, results, ranked, budget, prefer, overwrite, command)
    journal.path.unlink(missing_ok=True)
    return report


def _confirm(
    output: Path,
    bench: Bench,
    unseen: Split,
    results: Sequence[Measured],
    ranked: Sequence[Measured],
    budget: float,
    prefer: Prefer,
    overwrite: bool,
    command: str,
) -> AutoReport:
    """Write the preferred mix, of those `ranked`, that keeps to the budget on samples that the search has not seen.

    A mix that does not keep to it is left out, and the best of the others in `results` comes next.
    """
    baseline = unseen.scores(bench.source.bundle)
    left, nearest = list(results), (math.inf, results[0])
    while ranked:
        chosen = ranked[0]
        with bench.made(chosen.components) as small:
            scores = unseen.scores(small)
        loss = relative_loss(baseline.mean, scores.mean)
        if loss > budget:
            nearest = min(nearest, (loss, chosen), key=lambda pair: pair[0])
            left.remove(chosen)
            ranked = frontier(left, budget, prefer)
            continue
        report = AutoReport(
            bundle=output,
            metric=baseline.metric,
            budget=budget,
            prefer=prefer,
            chosen=chosen,
            size_ratio=chosen.bytes / results[0].bytes,
            unseen=unseen.name,
            unseen_scores=(baseline.mean, scores.mean),
            unseen_loss=loss,
            interval=_interval(baseline.values, scores.values),
            frontier=tuple(ranked),
            measured=tuple(results),
        )
        bench.write(output, chosen.components, _search_record(report, bench.split.name), overwrite, command)
        return report
    loss, chosen = nearest
    raise XattnError(
        f"{unseen.name}: expected a mix that loses at most {budget:.2%} on samples that the search has not seen, "
        f"found that {named(chosen.components)} comes nearest, with {loss:.2%}; allow a larger --budget, or give more "
        "--examples"
    )


def _interval(baseline: Sequence[float], measured: Sequence[float]) -> tuple[float, float]:
    """95 % of the loss over resamples of the samples, in pairs (Efron, 1979: the percentile method)."""
    rng = np.random.default_rng(0)
    one, other = np.asarray(baseline), np.asarray(measured)
    rows = rng.integers(0, len(one), (_RESAMPLES, len(one)))
    means = one[rows].mean(axis=1)
    losses = (means - other[rows].mean(axis=1)) / np.where(means == 0, 1, means)
    low, high = np.quantile(losses, [0.025, 0.975])
    return float(low), float(high)


def _search_record(report: AutoReport, calibration: str) -> dict[str, Any]:
    return {
        "metric": report.metric,
        "budget": report.budget,
        "prefer": report.prefer,
        "measured": len(report.measured),
        "calibration": {"data": calibration, "loss": report.chosen.loss},
        "confirmed": {"data": report.unseen, "loss": report.unseen_loss, "interval": list(report.interval)},
    }


def _impossible(results: Sequence[Measured], budget: float) -> str:
    tried = [one for one in results if one.components and one.failure is None]
    if not tried:
        return f"expected modes that this bundle can have, found none: {results[-1].failure}"
    nearest = min(tried, key=lambda one: one.loss)
    return (
        f"expected a mix that loses at most {budget:.2%}, found none among {len(results)}: {named(nearest.components)} "
        f"comes nearest, with {nearest.loss:.2%} and {nearest.bytes / results[0].bytes:.2f} of the size; allow a "
        "larger --budget"
    )
