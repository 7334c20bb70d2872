"""What a mechanism does over all fusions, and a fusion over all mechanisms, and how sure that is."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from xattn_runtime.profiling.measure.estimates import student_quantile

__all__ = ["Effects", "Means", "Spread", "effects_of"]

# Above it lies half of what a 95 % interval leaves out.
_UPPER = 0.975
_SURE = 2.0


@dataclass(frozen=True)
class Spread:
    """Over seeds: one standard deviation for all combinations, as so few seeds say little of each alone."""

    deviation: float

    @classmethod
    def of(cls, combinations: Sequence[Sequence[float]]) -> Spread | None:
        """Of the accuracies by seed of each combination; None where none has two."""
        several = [values for values in combinations if len(values) > 1]
        if not several:
            return None
        squares = sum((len(values) - 1) * statistics.variance(values) for values in several)
        return cls((squares / sum(len(values) - 1 for values in several)) ** 0.5)

    def margin(self, one: Sequence[float], other: Sequence[float]) -> float:
        """Two standard errors of the difference of the means of both."""
        return float(_SURE * self.deviation * (1 / len(one) + 1 / len(other)) ** 0.5)


@dataclass(frozen=True)
class Means:
    """Of one side of a grid: the mean by name, half the 95 % interval of each, and how far two must be apart."""

    means: Mapping[str, float]
    half_interval: float
    least_difference: float

    @property
    def highest(self) -> str:
        """The name with the highest mean."""
        return max(self.means, key=lambda name: self.means[name])

    @property
    def like_highest(self) -> list[str]:
        """Those that cannot be distinguished from it, without itself, the highest first."""
        return [
            name
            for name in sorted(self.means, key=lambda name: -self.means[name])
            if name != self.highest and self.means[self.highest] - self.means[name] <= self.least_difference
        ]


@dataclass(frozen=True)
class Effects:
    """Of a full grid of mechanisms and fusions.

    seeds: of every cell, those that all have. shares: of the variance between cells, what goes with the mechanism,
        with the fusion, and with neither alone.
    """

    mechanisms: Means
    fusions: Means
    seeds: int
    shares: tuple[float, float, float]


def effects_of(cells: Mapping[tuple[str, str], Sequence[float]]) -> Effects | None:
    """Means of the mechanisms that were measured with every fusion; None where that are fewer than two.

    A mean is uncertain by what its replicates differ in beyond what is common to all: replicates are the seeds, each
    a mean over the other side of the grid, and with a single seed the cells of the other side themselves. That is the
    error of a two-way analysis of variance, with (means - 1) · (replicates - 1) degrees of freedom.

    Args:
        cells: accuracies by seed, of (mechanism, fusion).
    """
    fusions = list(dict.fromkeys(fusion for _, fusion in cells))
    mechanisms = [
        name
        for name in dict.fromkeys(mechanism for mechanism, _ in cells)
        if all((name, fusion) in cells for fusion in fusions)
    ]
    if len(mechanisms) < 2 or len(fusions) < 2:
        return None
    seeds = min(len(cells[mechanism, fusion]) for mechanism in mechanisms for fusion in fusions)
    grid = [[list(cells[mechanism, fusion])[:seeds] for fusion in fusions] for mechanism in mechanisms]
    transposed = [list(column) for column in zip(*grid, strict=True)]
    return Effects(_means(mechanisms, grid), _means(fusions, transposed), seeds, _shares(grid))


def _means(names: Sequence[str], grid: Sequence[Sequence[Sequence[float]]]) -> Means:
    """Of rows of cells, each with its seeds."""
    if len(grid[0][0]) > 1:
        table = [[statistics.fmean(values) for values in zip(*row, strict=True)] for row in grid]
    else:
        table = [[cell[0] for cell in row] for row in grid]
    rows, replicates = len(table), len(table[0])
    freedom = (rows - 1) * (replicates - 1)
    error = (_left_over(table) / freedom / replicates) ** 0.5
    half = student_quantile(_UPPER, freedom) * error
    means = {name: statistics.fmean(row) for name, row in zip(names, table, strict=True)}
    return Means(means, half, half * 2**0.5)


def _left_over(table: Sequence[Sequence[float]]) -> float:
    """Sum of squares of what a row's mean and a column's together leave of a value."""
    whole = statistics.fmean(value for row in table for value in row)
    by_row = [statistics.fmean(row) for row in table]
    by_column = [statistics.fmean(column) for column in zip(*table, strict=True)]
    return sum(
        (value - by_row[i] - by_column[j] + whole) ** 2 for i, row in enumerate(table) for j, value in enumerate(row)
    )


def _shares(grid: Sequence[Sequence[Sequence[float]]]) -> tuple[float, float, float]:
    cells = [[statistics.fmean(cell) for cell in row] for row in grid]
    whole = statistics.fmean(value for row in cells for value in row)
    total = sum((value - whole) ** 2 for row in cells for value in row) or 1.0
    by_row = len(cells[0]) * sum((statistics.fmean(row) - whole) ** 2 for row in cells)
    by_column = len(cells) * sum((statistics.fmean(column) - whole) ** 2 for column in zip(*cells, strict=True))
    return by_row / total, by_column / total, _left_over(cells) / total
