"""Percentiles with their confidence intervals, when warm-up is over, and whether two runs differ. Numbers only."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist, fmean, median, stdev

import numpy as np
from numpy.typing import NDArray

__all__ = [
    "Percentile",
    "Shift",
    "StageTiming",
    "fast",
    "is_warm",
    "mean_interval",
    "paired_shift",
    "quantile_interval",
    "ratio_shift",
    "run_shift",
    "student_quantile",
    "summarise",
]

CONFIDENCE = 0.95
_WINDOW = 5
_STILL_FALLING = 0.97
# What others do on a machine only adds time: the fastest passes of a round, and the faster rounds, tell the most.
_FAST, _SLOW_ROUNDS = 0.1, 0.25
_MOST_ALIKE = 0.8
# By how much two processes of the same differ, as a share, where nothing else does: it cannot be seen within one.
_RUN_TO_RUN = 0.01
# What makes rounds differ does so from run to run too, slower and so unseen: by at least this share of their spread.
_SLOW_DRIFT = 0.5
# How well the reference stands for a bundle: by what share of itself what it says may be wrong.
_REFERENCE_DOUBT = 0.25


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


def fast(times_ms: Sequence[float]) -> float:
    """The fastest decile."""
    return float(np.quantile(times_ms, _FAST))


def mean_interval(rounds: Sequence[float]) -> float:
    """Half the width of the 95 % interval of what `run_shift` compares, as a share of it; infinite below 2 rounds."""
    if len(rounds) < 2:
        return math.inf
    _, error, freedom = _typical(rounds)
    return student_quantile(1 - (1 - CONFIDENCE) / 2, freedom) * error


def run_shift(
    before: Sequence[float],
    after: Sequence[float],
    reference_before: Sequence[float] = (),
    reference_after: Sequence[float] = (),
) -> tuple[Shift, float]:
    """By what share the rounds of one run are longer than those of another at another time, and the machine's part.

    The logarithms of the faster three quarters of the rounds have a mean, whose error is Yuen's for trimmed means
    (Biometrika 61, 1974), widened where rounds are like those before them, and by what processes differ. What the
    reference's rounds say of the machine is taken out as far as it is more than twice its own error (a positive-part
    James-Stein shrinkage), and adds to the interval what may be wrong in it.

    Returns:
        The shift, after the second value, the share by which the machine was slower, was taken out.

    Raises:
        ValueError: fewer than 2 rounds on a side.
    """
    change, error, freedom = _difference(before, after)
    machine = 0.0
    if min(len(reference_before), len(reference_after)) >= 2:
        found, doubt, _ = _difference(reference_before, reference_after)
        machine = found * max(0.0, 1 - (2 * doubt / found) ** 2) if found else 0.0
        if machine:
            error = math.sqrt(error**2 + doubt**2 + (_REFERENCE_DOUBT * machine) ** 2)
    return _interval(change - machine, error, freedom), math.expm1(machine)


def paired_shift(before: Sequence[float], after: Sequence[float]) -> Shift:
    """By what share one is longer than the other, where both were measured in the same rounds: of the rounds' ratios.

    The rounds that only one of them has are left out. ValueError: fewer than 2 rounds on a side.
    """
    count = min(len(before), len(after))
    if count < 2:
        raise ValueError(f"expected at least 2 rounds on each side, found {len(before)} and {len(after)}")
    # Others slow down the one as often as the other.
    cut = int(_SLOW_ROUNDS * count / 2)
    change, error, freedom = _trimmed(np.log(after[:count]) - np.log(before[:count]), cut, cut)
    total = error**2 + 2 * _RUN_TO_RUN**2
    return _interval(change, math.sqrt(total), total**2 / max(error**4 / freedom, 1e-9 * total**2))


def ratio_shift(before: Sequence[float], after: Sequence[float]) -> Shift:
    """By what share `after` is larger than `before`, from independent pairs, by Student's t of their log ratios.

    Raises:
        ValueError: not as many on both sides, or fewer than 2.
    """
    if len(before) != len(after) or len(before) < 2:
        raise ValueError(f"expected at least 2 pairs, found {len(before)} and {len(after)} values")
    ratios = [math.log(new / old) for old, new in zip(before, after, strict=True)]
    return _interval(fmean(ratios), stdev(ratios) / math.sqrt(len(ratios)), len(ratios) - 1)


def _difference(before: Sequence[float], after: Sequence[float]) -> tuple[float, float, float]:
    """Of two runs' logarithms: the difference, its standard error, and the degrees of freedom (Welch)."""
    if min(len(before), len(after)) < 2:
        raise ValueError(f"expected at least 2 rounds on each side, found {len(before)} and {len(after)}")
    (one, error_one, freedom_one), (other, error_other, freedom_other) = _typical(before), _typical(after)
    drift = [max(_RUN_TO_RUN, _SLOW_DRIFT * _spread(rounds)) for rounds in (before, after)]
    total = error_one**2 + error_other**2 + drift[0] ** 2 + drift[1] ** 2
    # What is known beforehand has no end of freedom.
    freedom = total**2 / max(error_one**4 / freedom_one + error_other**4 / freedom_other, 1e-9 * total**2)
    return other - one, math.sqrt(total), freedom


def _spread(rounds: Sequence[float]) -> float:
    """The standard deviation of the logarithms, from the faster half of them, as of a normal distribution."""
    median_log, quick = np.quantile(np.log(rounds), (0.5, NormalDist().cdf(-1)))
    return float(median_log - quick)


def _typical(rounds: Sequence[float]) -> tuple[float, float, float]:
    """The mean logarithm of all but the slowest quarter, its standard error, and the degrees of freedom."""
    return _trimmed(np.log(rounds), 0, int(_SLOW_ROUNDS * len(rounds)))


def _trimmed(values: NDArray[np.float64], low: int, high: int) -> tuple[float, float, float]:
    """The mean without the `low` least and the `high` largest, its standard error, and the degrees of freedom."""
    ordered = np.sort(values)[low : len(values) - high]
    kept, clipped = len(ordered), np.clip(values, ordered[0], ordered[-1])
    centred = clipped - clipped.mean()
    power = float(centred @ centred)
    # Estimates of so few are too low by about 1 / n.
    alike = float(centred[1:] @ centred[:-1]) / power + 1 / len(values) if power else 0.0
    alike = min(max(alike, 0.0), _MOST_ALIKE)
    inflation = (1 + alike) / (1 - alike)
    error = math.sqrt(power / (kept * (kept - 1)) * inflation)
    return float(ordered.mean()), error, max(1.0, kept / inflation - 1)


def _interval(difference: float, error: float, freedom: float) -> Shift:
    half = student_quantile(1 - (1 - CONFIDENCE) / 2, freedom) * error
    detectable = half + student_quantile(CONFIDENCE, freedom) * error
    return Shift(*(math.expm1(value) for value in (difference, difference - half, difference + half, detectable)))


def student_quantile(share: float, freedom: float) -> float:
    """Quantile of Student's t by its expansion around the normal's (Abramowitz and Stegun 26.7.5).

    At 0.975 it is right to 0.01 from 4 degrees of freedom on; with fewer it is too small.
    """
    z = NormalDist().inv_cdf(share)
    terms = (
        (z**3 + z) / 4,
        (5 * z**5 + 16 * z**3 + 3 * z) / 96,
        (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384,
    )
    return z + sum(term / freedom ** (power + 1) for power, term in enumerate(terms))
