"""What is kept of activations while they pass: ranges, histograms, products of channels. Each is of a fixed size.

Numbers only: it knows arrays, and neither graphs nor bundles.
"""

from __future__ import annotations

from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from xattn_export.quantize.base.options import RangeMethod

__all__ = ["ChannelMeans", "ChannelPeaks", "ChannelProducts", "HeadPeaks", "Histogram", "Observer"]

_BINS = 2048
_LEVELS = 128
# Of one run: products of channels say as much of every second position, or every tenth.
_MOST_ROWS = 256


class Observer(Protocol):
    """Something that is kept of a tensor."""

    def see(self, values: NDArray[np.float32]) -> None:
        """Take one more array of the tensor into account."""


class ChannelProducts:
    """The mean product of every two channels, of at most 256 positions a run, spread evenly."""

    def __init__(self, channels: int) -> None:
        self.bytes = 4 * channels * channels
        self._sum: NDArray[np.float32] | None = None
        self._rows = 0

    def see(self, values: NDArray[np.float32]) -> None:
        """`[…, channels]`."""
        rows = values.reshape(-1, values.shape[-1])
        rows = rows[:: max(1, -(-len(rows) // _MOST_ROWS))]
        self._sum = rows.T @ rows if self._sum is None else self._sum + rows.T @ rows
        self._rows += len(rows)

    def mean(self) -> NDArray[np.float32] | None:
        """float32 `[channels, channels]`, None where nothing was seen."""
        return None if self._sum is None else self._sum / np.float32(max(1, self._rows))


class ChannelMeans:
    """The mean of every channel."""

    def __init__(self) -> None:
        self._sum: NDArray[np.float64] | None = None
        self._rows = 0

    def see(self, values: NDArray[np.float32]) -> None:
        """`[…, channels]`."""
        rows = values.reshape(-1, values.shape[-1])
        total = rows.sum(axis=0, dtype=np.float64)
        self._sum = total if self._sum is None else self._sum + total
        self._rows += len(rows)

    def mean(self) -> NDArray[np.float32] | None:
        """float32 `[channels]`, None where nothing was seen."""
        return (self._sum / self._rows).astype(np.float32) if self._sum is not None and self._rows else None


class ChannelPeaks:
    """The largest magnitude of every channel."""

    def __init__(self) -> None:
        self.peaks: NDArray[np.float32] | None = None

    def see(self, values: NDArray[np.float32]) -> None:
        """`[…, channels]`."""
        peaks = np.abs(values.reshape(-1, values.shape[-1])).max(axis=0)
        self.peaks = peaks if self.peaks is None else np.maximum(self.peaks, peaks)


class HeadPeaks:
    """The largest magnitude of every channel of every head."""

    def __init__(self) -> None:
        self.peaks: NDArray[np.float32] | None = None

    def see(self, values: NDArray[np.float32]) -> None:
        """`[batch, heads, tokens, head_width]`."""
        if values.shape[2]:
            peaks = np.abs(values).max(axis=(0, 2))
            self.peaks = peaks if self.peaks is None else np.maximum(self.peaks, peaks)


class Histogram:
    """How often values lie where, in 2048 bins around 0 that widen twofold as they must, and the least and greatest."""

    def __init__(self) -> None:
        self._low, self._high = np.inf, -np.inf
        self._reach = 0.0
        self._counts = np.zeros(_BINS, np.int64)

    def see(self, values: NDArray[np.float32]) -> None:
        """Of any shape."""
        if not values.size:
            return
        self._low, self._high = min(self._low, float(values.min())), max(self._high, float(values.max()))
        largest = max(abs(self._low), abs(self._high))
        if not self._reach:
            self._reach = largest
        while self._reach < largest:
            self._widen()
        if self._reach:
            self._counts += np.histogram(values, bins=_BINS, range=(-self._reach, self._reach))[0]

    def _widen(self) -> None:
        pairs = self._counts.reshape(-1, 2).sum(axis=1)
        self._counts = np.pad(pairs, _BINS // 4)
        self._reach *= 2

    def range(self, method: RangeMethod, percentile: float) -> tuple[float, float]:
        """The least and greatest value to represent; those seen, or less where the method leaves outliers out.

        entropy: the symmetric range whose 128 levels approximate the distribution of values best (TensorRT, 2017).
        """
        if method == "min-max" or not self._reach:
            return (self._low, self._high) if self._low <= self._high else (0.0, 0.0)
        if method == "entropy":
            reach = self._entropy_reach()
            return max(self._low, -reach), min(self._high, reach)
        shares = np.cumsum(self._counts) / self._counts.sum()
        outside = (1 - percentile / 100) / 2
        edges = np.linspace(-self._reach, self._reach, _BINS + 1)
        first = int(np.searchsorted(shares, outside, side="right"))
        last = min(int(np.searchsorted(shares, 1 - outside)) + 1, _BINS)
        return max(self._low, float(edges[first])), min(self._high, float(edges[last]))

    def _entropy_reach(self) -> float:
        """The end of the range of least divergence, in steps of the levels."""
        counts = (self._counts[_BINS // 2 :] + self._counts[: _BINS // 2][::-1]).astype(np.float64)
        ends = range(_LEVELS, len(counts) + 1, _LEVELS // 4)
        best = min(ends, key=lambda end: _divergence(counts, end))
        return self._reach * best / len(counts)


def _divergence(counts: NDArray[np.float64], end: int) -> float:
    """Kullback-Leibler divergence of `counts` up to `end`, the rest in the last bin, from what levels make of them."""
    clipped = counts[:end].copy()
    clipped[-1] += counts[end:].sum()
    levels = np.minimum(np.arange(end) * _LEVELS // end, _LEVELS - 1)
    filled = counts[:end] > 0
    sums = np.bincount(levels, counts[:end], _LEVELS)
    sizes = np.bincount(levels, filled, _LEVELS)
    spread = np.where(filled, (sums / np.maximum(sizes, 1))[levels], 0)
    if not spread.sum():
        return float("inf")
    approximated, original = np.maximum(spread / spread.sum(), 1e-12), clipped / clipped.sum()
    seen = original > 0
    return float((original[seen] * np.log(original[seen] / approximated[seen])).sum())
