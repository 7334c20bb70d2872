"""Weights to few bits: the values, scales and zero points that come nearest, by four ways of choosing them.

Numbers only: it knows no graph. A weight is `[rows, columns]`, as the second factor of a product has it: rows are
summed over, and a scale holds for a block of rows of one column.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

__all__ = ["ROUNDINGS", "Grid", "Rounded", "Rounding", "round_weights"]

Rounding = Literal["nearest", "fitted", "hqq", "gptq"]
ROUNDINGS: tuple[Rounding, ...] = ("nearest", "fitted", "hqq", "gptq")

_Floats = NDArray[np.float32]
# Of the scale that takes in the largest weight of a block: clipping it a little often fits the others better.
_SCALE_SHARES = (1.0, 0.95, 0.9, 0.85, 0.8, 0.75)
_REFITS = 2
# HQQ's own settings: the norm, and how fast its penalty grows.
_HQQ_NORM, _HQQ_PENALTY, _HQQ_GROWTH, _HQQ_ROUNDS = 0.7, 10.0, 1.01, 20
_GPTQ_DAMPING = 0.01
_GPTQ_ROWS = 128
# Twice the largest byte times this is within 16 bits with a sign: 255 x 128 = 32,640.
_LARGEST_PAIR = 128
# A vocabulary's product is rounded in parts, so that little more than the weights is in memory.
_COLUMNS_AT_ONCE = 8192


@dataclass(frozen=True)
class Grid:
    """What a weight may become: whole numbers of `bits` bits, times a scale for every `block` rows of a column.

    block: 0 for a scale a column. symmetric: without zero points; the values are signed then, else unsigned.
    paired: rows 2 k and 2 k + 1 add up to 128 at most, so that what unsigned bytes times them add up to is within 16
    bits.
    """

    bits: int
    block: int
    symmetric: bool = True
    paired: bool = False

    @property
    def lowest(self) -> int:
        """The least value; -127 of 8 bits, as sums of products of bytes stay exact with it."""
        if not self.symmetric:
            return 0
        return -127 if self.bits == 8 else -(1 << (self.bits - 1))

    @property
    def highest(self) -> int:
        """The greatest value."""
        return (1 << (self.bits - 1)) - 1 if self.symmetric else (1 << self.bits) - 1


@dataclass(frozen=True)
class Rounded:
    """A rounded weight: `(values - zeros) * scales` is near it.

    values: int16 `[rows, columns]`. scales: float32 `[blocks, columns]`. zeros: int16 of the same shape, or None for 0.
    """

    grid: Grid
    values: NDArray[np.int16]
    scales: _Floats
    zeros: NDArray[np.int16] | None

    def restored(self) -> _Floats:
        """The weights that come back, float32 `[rows, columns]`."""
        size = self.grid.block or len(self.values)
        scales = self.scales.repeat(size, axis=0)
        zeros = np.int16(0) if self.zeros is None else self.zeros.repeat(size, axis=0)
        restored: _Floats = (self.values - zeros).astype(np.float32) * scales
        return restored


def round_weights(weights: _Floats, grid: Grid, rounding: Rounding, hessian: _Floats | None = None) -> Rounded:
    """`weights` `[rows, columns]` on `grid`; the block must divide the rows.

    rounding: `nearest`: the scale takes in the largest weight of a block; `fitted`: of several scales the one with the
    least squared error, refitted by least squares; `hqq`: half-quadratic quantization, which is robust against
    outliers (Badri and Shaji, 2023); `gptq`: rows one after the other, each error made up for by the rows that follow
    (Frantar et al., 2023, https://arxiv.org/abs/2210.17323), on scales as `fitted`, weighted.
    hessian: for `gptq`: the mean of the products of activations, float32 `[rows, rows]`.
    """
    parts = [
        _rounded(weights[:, start : start + _COLUMNS_AT_ONCE], grid, rounding, hessian)
        for start in range(0, weights.shape[1], _COLUMNS_AT_ONCE)
    ]
    values, scales, zeros = (np.concatenate(part, axis=1) for part in zip(*parts, strict=True))
    return Rounded(
        grid, values.astype(np.int16), scales.astype(np.float32), None if grid.symmetric else zeros.astype(np.int16)
    )


def _rounded(
    weights: _Floats, grid: Grid, rounding: Rounding, hessian: _Floats | None
) -> tuple[_Floats, _Floats, _Floats]:
    """Values `[rows, columns]`, scales and zeros `[blocks, columns]`."""
    size = grid.block or len(weights)
    blocks = np.ascontiguousarray(weights).reshape(-1, size, weights.shape[1])
    if rounding == "nearest":
        scales, zeros = _widest(blocks, grid, 1.0)
    elif rounding == "hqq":
        scales, zeros = _half_quadratic(blocks, grid)
    else:
        importance = None if hessian is None else np.diagonal(hessian).reshape(-1, size, 1)
        scales, zeros = _fitted(blocks, grid, importance)
    if rounding == "gptq" and hessian is not None:
        values = _compensated(weights, grid, scales, zeros, hessian)
    else:
        values = _values(blocks, grid, scales, zeros)
    return values.reshape(weights.shape), scales[:, 0], zeros[:, 0]


def _values(blocks: _Floats, grid: Grid, scales: _Floats, zeros: _Floats) -> _Floats:
    values: _Floats = np.clip(np.rint(blocks / scales) + zeros, grid.lowest, grid.highest)
    return _within_pairs(values) if grid.paired else values


def _within_pairs(values: _Floats) -> _Floats:
    """The nearest values of which rows 2 k and 2 k + 1 add up to `_LARGEST_PAIR` at most, by magnitude."""
    size = values.shape[1] // 2 * 2
    first, second = values[:, :size:2], values[:, 1:size:2]
    total = first + second
    excess = np.maximum(np.abs(total) - _LARGEST_PAIR, 0)
    if not excess.any():
        return values
    more, less = np.sign(total) * np.ceil(excess / 2), np.sign(total) * np.floor(excess / 2)
    is_first = np.abs(first) >= np.abs(second)
    bounded = values.copy()
    bounded[:, :size:2] -= np.where(is_first, more, less)
    bounded[:, 1:size:2] -= np.where(is_first, less, more)
    return bounded


def _widest(blocks: _Floats, grid: Grid, share: float) -> tuple[_Floats, _Floats]:
    """Scales and zeros `[blocks, 1, columns]` that take in a share of the range of each block.

    Symmetric ones of few bits are negative where that puts the largest weight on the side that reaches further.
    """
    if not grid.symmetric:
        low = np.minimum(blocks.min(axis=1, keepdims=True), 0) * np.float32(share)
        high = np.maximum(blocks.max(axis=1, keepdims=True), 0) * np.float32(share)
        scales = _no_zero((high - low) / np.float32(grid.highest))
        return scales, np.clip(np.rint(-low / scales), 0, grid.highest)
    if grid.lowest == -grid.highest:
        widest = np.abs(blocks).max(axis=1, keepdims=True) / np.float32(grid.highest)
        size = blocks.shape[1] // 2 * 2
        if grid.paired and size:
            pairs = np.abs(blocks[:, :size:2] + blocks[:, 1:size:2])
            widest = np.maximum(widest, pairs.max(axis=1, keepdims=True) / np.float32(_LARGEST_PAIR))
    else:
        at = np.abs(blocks).argmax(axis=1, keepdims=True)
        widest = np.take_along_axis(blocks, at, axis=1) / np.float32(grid.lowest)
    scales = _no_zero(widest * np.float32(share))
    return scales, np.zeros_like(scales)


def _no_zero(scales: _Floats) -> _Floats:
    return np.where(scales == 0, np.float32(1), scales).astype(np.float32)


def _fitted(blocks: _Floats, grid: Grid, importance: _Floats | None) -> tuple[_Floats, _Floats]:
    """The scales and zeros of least squared error, of each row's by its importance `[blocks, rows, 1]`."""
    weight = np.float32(1) if importance is None else importance
    best = _widest(blocks, grid, 1.0)
    least = _squared(blocks, grid, *best, weight)
    for share in _SCALE_SHARES:
        scales, zeros = _widest(blocks, grid, share)
        for _ in range(_REFITS):
            error = _squared(blocks, grid, scales, zeros, weight)
            better = error < least
            best = np.where(better, scales, best[0]), np.where(better, zeros, best[1])
            least = np.where(better, error, least)
            scales = _refitted(blocks, grid, scales, zeros, weight)
    return best


def _refitted(blocks: _Floats, grid: Grid, scales: _Floats, zeros: _Floats, weight: _Floats | np.float32) -> _Floats:
    """For the values at these scales, the scales that fit best."""
    steps = _values(blocks, grid, scales, zeros) - zeros
    squares = (weight * steps * steps).sum(axis=1, keepdims=True)
    products = (weight * steps * blocks).sum(axis=1, keepdims=True)
    return np.where((squares > 0) & (products != 0), products / np.maximum(squares, 1e-30), scales).astype(np.float32)


def _squared(blocks: _Floats, grid: Grid, scales: _Floats, zeros: _Floats, weight: _Floats | np.float32) -> _Floats:
    difference = (_values(blocks, grid, scales, zeros) - zeros) * scales - blocks
    squared: _Floats = (weight * np.square(difference)).sum(axis=1, keepdims=True)
    return squared


def _half_quadratic(blocks: _Floats, grid: Grid) -> tuple[_Floats, _Floats]:
    """Scales and zeros that leave few large errors: errors are split off by shrinkage, the rest is fitted.

    Zero points are whole numbers in ONNX, where the method has fractions: here the scale is fitted instead.
    """
    scales, zeros = _widest(blocks, grid, 1.0)
    best, least, penalty = (scales, zeros), np.inf, _HQQ_PENALTY
    for _ in range(_HQQ_ROUNDS):
        values = _values(blocks, grid, scales, zeros)
        error = blocks - (values - zeros) * scales
        size = np.abs(error)
        total = float((size**_HQQ_NORM).sum())
        if total >= least:
            break
        best, least = (scales, zeros), total
        shrunk = np.maximum(size - np.power(size + 1e-8, _HQQ_NORM - 1) / np.float32(penalty), 0)
        rest = blocks - np.sign(error) * shrunk
        if not grid.symmetric:
            zeros = np.clip(np.rint((values - rest / scales).mean(axis=1, keepdims=True)), 0, grid.highest)
        steps = values - zeros
        squares, products = (np.square(steps).sum(axis=1, keepdims=True), (steps * rest).sum(axis=1, keepdims=True))
        usable = (squares > 0) & (products != 0)
        scales = np.where(usable, products / np.maximum(squares, 1e-30), scales).astype(np.float32)
        penalty *= _HQQ_GROWTH
    return best


def _compensated(weights: _Floats, grid: Grid, scales: _Floats, zeros: _Floats, hessian: _Floats) -> _Floats:
    """Values `[rows, columns]`, chosen row by row, the most used row first; what a row errs, later ones make up for."""
    rows = len(weights)
    order = np.argsort(-np.diagonal(hessian), kind="stable")
    ordered = hessian[np.ix_(order, order)].astype(np.float64)
    unused = np.diagonal(ordered) == 0
    ordered[unused, unused] = 1
    ordered[np.diag_indices(rows)] += _GPTQ_DAMPING * np.diagonal(ordered).mean()
    upper = np.linalg.cholesky(np.linalg.inv(ordered)).T.astype(np.float32)
    left = weights[order].copy()
    block_of = order // (grid.block or rows)
    chosen = np.empty_like(left)
    places = np.append(np.argsort(order), rows)  # of each row in this order; the last of an odd number has no other
    for start in range(0, rows, _GPTQ_ROWS):
        stop = min(start + _GPTQ_ROWS, rows)
        errors = np.empty_like(left[start:stop])
        for row in range(start, stop):
            scale, zero = scales[block_of[row], 0], zeros[block_of[row], 0]
            chosen[row] = np.clip(np.rint(left[row] / scale) + zero, grid.lowest, grid.highest)
            if grid.paired and (other := places[order[row] ^ 1]) < row:
                chosen[row] = np.clip(chosen[row], -_LARGEST_PAIR - chosen[other], _LARGEST_PAIR - chosen[other])
            errors[row - start] = (left[row] - (chosen[row] - zero) * scale) / upper[row, row]
            left[row + 1 : stop] -= upper[row, row + 1 : stop, None] * errors[row - start]
        left[stop:] -= upper[start:stop, stop:].T @ errors
    values = np.empty_like(chosen)
    values[order] = chosen
    return values
