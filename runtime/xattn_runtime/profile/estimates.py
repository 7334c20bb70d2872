"""Percentiles with their confidence intervals, when warm-up is over, and whether two runs differ. Numbers only."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist, fmean, median, stdev

import numpy as np

__all__ = ["Percentile", "Shift", "StageTiming", "is_warm", "mean_shift", "quantile_interval", "summarise"]

CONFIDENCE = 0.95
_WINDOW = 5
_STILL_FALLING = 0.97


@dataclass(frozen=True)
class Percentile:
    """A percentile in milliseconds and its 95 % interval; a bound is None where there are too few measurements."""

    ms: float
    low_ms: float | None
    high_ms: float | None


@dataclass(frozen=True)
class StageTiming:
    """How long a stage took over `n` measurements, in milliseconds."""

    n: int
    mean_ms: float
    p50: Percentile
    p90: Percentile
    p99: Percentile


@dataclass(frozen=True)
class Shift:
    """By what share something changed, with its 95 % interval, and the least change that would have been seen.

    detectable: the least true share that is told from none in 95 of 100 tries.
    """

    share: float
    low: float
    high: float
    detectable: float


def summarise(times_ms: Sequence[float]) -> StageTiming:
    """Percentiles, linear between measurements, and mean of at least one measurement."""
    ordered = sorted(times_ms)
    p50, p90, p99 = (
        Percentile(float(np.percentile(ordered, 100 * share)), *quantile_interval(ordered, share))
        for share in (0.5, 0.9, 0.99)
    )
    return StageTiming(len(ordered), fmean(ordered), p50, p90, p99)


def quantile_interval(ordered: Sequence[float], share: float) -> tuple[float | None, float | None]:
    """95 % interval of the quantile `share` of what `ordered` was drawn from, whatever its distribution.

    The bounds are two of the measurements: how many lie below the quantile is binomial (Conover, Practical
    Nonparametric Statistics, 3.2). None where no measurement is far enough out.
    """
    n, tail = len(ordered), (1 - CONFIDENCE) / 2
    below, low, high = 0.0, None, None
    for count in range(n + 1):
        log_ways = math.lgamma(n + 1) - math.lgamma(count + 1) - math.lgamma(n - count + 1)
        below += math.exp(log_ways + count * math.log(share) + (n - count) * math.log1p(-share))
        if below <= tail and count < n:
            low = ordered[count]
        if high is None and below >= 1 - tail and count < n:
            high = ordered[count]
    return low, high


def is_warm(times_ms: Sequence[float]) -> bool:
    """Whether the last five passes took no less than 0.97 of the five before them: nothing gets faster any more."""
    if len(times_ms) < 2 * _WINDOW:
        return False
    before, last = times_ms[-2 * _WINDOW : -_WINDOW], times_ms[-_WINDOW:]
    return median(last) >= _STILL_FALLING * median(before)


def mean_shift(before: Sequence[float], after: Sequence[float]) -> Shift:
    """By what share `after` is larger than `before`, from the logarithms of both, by Welch's t interval.

    Raises:
        ValueError: fewer than 2 values on a side.
    """
    if min(len(before), len(after)) < 2:
        raise ValueError(f"expected at least 2 values on each side, found {len(before)} and {len(after)}")
    logs = [[math.log(value) for value in values] for values in (before, after)]
    parts = [stdev(side) ** 2 / len(side) for side in logs]
    error = math.sqrt(sum(parts))
    difference = fmean(logs[1]) - fmean(logs[0])
    freedom = (
        sum(parts) ** 2 / sum(part**2 / (len(side) - 1) for part, side in zip(parts, logs, strict=True))
        if error
        else 1e9
    )
    half = _student(1 - (1 - CONFIDENCE) / 2, freedom) * error
    detectable = half + _student(CONFIDENCE, freedom) * error
    return Shift(*(math.expm1(value) for value in (difference, difference - half, difference + half, detectable)))


def _student(share: float, freedom: float) -> float:
    """Quantile of Student's t by its expansion around the normal's (Abramowitz and Stegun 26.7.5)."""
    z = NormalDist().inv_cdf(share)
    terms = (
        (z**3 + z) / 4,
        (5 * z**5 + 16 * z**3 + 3 * z) / 96,
        (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384,
    )
    return z + sum(term / freedom ** (power + 1) for power, term in enumerate(terms))
