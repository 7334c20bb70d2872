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
    "apart_shift",
    "is_warm",
    "median_interval",
    "quantile_interval",
    "ratio_shift",
    "student_quantile",
    "summarise",
    "turns_shift",
]

CONFIDENCE = 0.95
_WINDOW = 5
_STILL_FALLING = 0.97
_MOST_ALIKE = 0.8
# By what share the medians of processes of the same differ, and how many processes that knowledge is worth.
_PROCESS_TO_PROCESS, _WORTH = 0.015, 4
# By what share two runs of the same at different times differ, however many processes they have.
_RUN_TO_RUN = 0.01


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

    detectable: the least true share that is distinguished from none in 95 of 100 tries.
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


def median_interval(rounds: Sequence[float]) -> float:
    """Half the width of the 95 % interval of the median of a process's rounds, as a share; infinite below 2 rounds."""
    if len(rounds) < 2:
        return math.inf
    return NormalDist().inv_cdf(1 - (1 - CONFIDENCE) / 2) * _median(np.log(rounds))[1]


def apart_shift(before: Sequence[Sequence[float]], after: Sequence[Sequence[float]]) -> Shift:
    """By what share the rounds of one run's processes are longer than those of another's, measured at another time.

    Each side has a mean over its processes of their median logarithm (`_over_processes`), and both may differ by
    _RUN_TO_RUN besides. ValueError: no process, or one with fewer than 2 rounds.
    """
    (one, error_one, freedom_one), (other, error_other, freedom_other) = (
        _over_processes([np.log(_checked(rounds)) for rounds in side], _PROCESS_TO_PROCESS) for side in (before, after)
    )
    seen, total = error_one**2 + error_other**2, error_one**2 + error_other**2 + 2 * _RUN_TO_RUN**2
    # Welch's degrees of freedom; what is known beforehand has no end of them.
    freedom = total**2 / (error_one**4 / freedom_one + error_other**4 / freedom_other) if seen else math.inf
    return _interval(other - one, math.sqrt(total), freedom)


def turns_shift(before: Sequence[Sequence[float]], after: Sequence[Sequence[float]]) -> Shift:
    """As `apart_shift`, where the processes of both were started in pairs that took turns: of the rounds' ratios.

    Processes and rounds that only one of them has are left out.
    """
    pairs = []
    for old, new in zip(before, after, strict=False):
        count = min(len(old), len(new))
        pairs.append(np.log(_checked(new[:count])) - np.log(_checked(old[:count])))
    return _interval(*_over_processes(pairs, math.sqrt(2) * _PROCESS_TO_PROCESS))


def ratio_shift(before: Sequence[float], after: Sequence[float]) -> Shift:
    """By what share `after` is larger than `before`, from independent pairs, by Student's t of their log ratios.

    Raises:
        ValueError: not as many on both sides, or fewer than 2.
    """
    if len(before) != len(after) or len(before) < 2:
        raise ValueError(f"expected at least 2 pairs, found {len(before)} and {len(after)} values")
    ratios = [math.log(new / old) for old, new in zip(before, after, strict=True)]
    return _interval(fmean(ratios), stdev(ratios) / math.sqrt(len(ratios)), len(ratios) - 1)


def _checked(rounds: Sequence[float]) -> Sequence[float]:
    if len(rounds) < 2:
        raise ValueError(f"expected at least 2 rounds of each process, found {len(rounds)}")
    return rounds


def _over_processes(processes: Sequence[NDArray[np.float64]], spread: float) -> tuple[float, float, float]:
    """The mean of the processes' medians, its standard error, and the degrees of freedom.

    Few processes say little of how much they differ. So their variance is moderated by what is known beforehand, as if
    _WORTH processes had shown it (Smyth, Stat. Appl. Genet. Mol. Biol. 3, 2004): `spread` and the medians' own errors.
    """
    if not processes:
        raise ValueError("expected at least 1 process, found none")
    medians, errors = zip(*map(_median, processes), strict=True)
    centre, known = fmean(medians), spread**2 + fmean(error**2 for error in errors)
    freedom = _WORTH + len(medians) - 1
    variance = (_WORTH * known + sum((one - centre) ** 2 for one in medians)) / freedom
    return centre, math.sqrt(variance / len(medians)), freedom


def _median(values: NDArray[np.float64]) -> tuple[float, float]:
    """The median and its standard error, as of a normal distribution, widened where values are like those before."""
    middle = float(np.median(values))
    spread = float(np.median(np.abs(values - middle))) / NormalDist().inv_cdf(0.75)
    centred = np.clip(values - middle, -3 * spread, 3 * spread)
    power = float(centred @ centred)
    # Estimates of so few are too low by about 1 / n.
    alike = float(centred[1:] @ centred[:-1]) / power + 1 / len(values) if power else 0.0
    alike = min(max(alike, 0.0), _MOST_ALIKE)
    return middle, math.sqrt(math.pi / 2 / len(values) * (1 + alike) / (1 - alike)) * spread


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
