"""Drawing tokens: what temperature, top-k, top-p and min-p leave of a distribution, and a draw from it.

Every row of a batch has a generator of its own: what is drawn for an image does not depend on those beside it.
"""

from __future__ import annotations

from typing import cast

import numpy as np
from numpy.typing import NDArray

from xattn_runtime.generate.options import Sampling
from xattn_runtime.generate.processors import Scores

__all__ = ["Sampler", "probabilities"]


_COLDEST = 1e-300


class Sampler:
    """Draws for a batch, a token a row at a time."""

    def __init__(self, sampling: Sampling, rows: int, draws: int = 1) -> None:
        """For `rows` that are `draws` in turn for each of some images: the n-th draws of all are made alike."""
        self._sampling = sampling
        seed = sampling.seed
        self._generators = [
            np.random.default_rng() if seed is None else np.random.default_rng((seed, row % draws))
            for row in range(rows)
        ]

    def draw(self, scores: Scores, rows: NDArray[np.int64]) -> NDArray[np.int64]:
        """A token for each of `rows`, int64 `[rows]`, by their scores, float32 `[rows, vocabulary]`."""
        cumulative = np.cumsum(probabilities(scores, self._sampling), axis=1)
        drawn = []
        for row, sums in zip(rows.tolist(), cumulative, strict=True):
            # Rounding must choose nothing beyond the last token that has a probability.
            aim = min(self._generators[row].random() * sums[-1], np.nextafter(sums[-1], 0.0))
            drawn.append(int(np.searchsorted(sums, aim, side="right")))
        return np.array(drawn, dtype=np.int64)


def probabilities(scores: Scores, sampling: Sampling) -> NDArray[np.float64]:
    """What tokens are drawn with, `[rows, vocabulary]`: 0 for those that the limits leave out."""
    logits = scores.astype(np.float64)
    if sampling.temperature < _COLDEST:  # else what is divided becomes infinite, the best one too
        logits -= logits.max(axis=1, keepdims=True)
    with np.errstate(over="ignore"):
        logits /= sampling.temperature
    if 0 < sampling.top_k < logits.shape[1]:
        least = np.partition(logits, -sampling.top_k, axis=1)[:, -sampling.top_k, None]
        logits = np.where(logits < least, -np.inf, logits)
    if sampling.top_p < 1:
        logits = np.where(_is_beyond(_softmax(logits), sampling.top_p), -np.inf, logits)
    if sampling.min_p > 0:
        weights = _softmax(logits)
        logits = np.where(weights < sampling.min_p * weights.max(axis=1, keepdims=True), -np.inf, logits)
    return _softmax(logits)


def _is_beyond(weights: NDArray[np.float64], share: float) -> NDArray[np.bool_]:
    """The tokens that the least probable ones end with before `1 - share` is reached; never the best."""
    order = np.argsort(weights, axis=1, kind="stable")
    beyond = np.cumsum(np.take_along_axis(weights, order, axis=1), axis=1) <= 1 - share
    beyond[:, -1] = False
    out = np.empty_like(beyond)
    np.put_along_axis(out, order, beyond, axis=1)
    return out


def _softmax(scores: NDArray[np.float64]) -> NDArray[np.float64]:
    weights = np.exp(scores - scores.max(axis=1, keepdims=True))
    return cast("NDArray[np.float64]", weights / weights.sum(axis=1, keepdims=True))
