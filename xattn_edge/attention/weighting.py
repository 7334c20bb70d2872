"""How scores become weights: a share of every position, or the best ones alone.

All take scores `[…, queries, keys]` and a mask that broadcasts to them, true where attention is allowed, and return
weights of the shape of the scores. A new weighting is a class here and one row of `WEIGHTINGS`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

import torch
from torch import Tensor, nn

__all__ = ["WEIGHTINGS", "HardWeighting", "SoftWeighting", "WeightingKind", "best_positions", "masked_softmax"]


def masked_softmax(scores: Tensor, mask: Tensor | None) -> Tensor:
    """Softmax over the last axis where `mask` allows; 0 elsewhere, and throughout a row that is masked throughout."""
    if mask is None:
        return scores.softmax(-1)
    lowest = torch.finfo(scores.dtype).min
    return scores.masked_fill(~mask, lowest).softmax(-1).masked_fill(~mask, 0.0)


def best_positions(scores: Tensor, mask: Tensor | None, count: int) -> Tensor:
    """Bool of the shape of `scores`: the `count` highest of a row that are allowed, or all where there are fewer.

    Of equal scores the first wins.
    """
    positions = torch.arange(scores.shape[-1], device=scores.device)
    lowest = torch.finfo(scores.dtype).min
    left = scores if mask is None else scores.masked_fill(~mask, lowest)
    chosen = torch.zeros_like(scores, dtype=torch.bool)
    for _ in range(count):
        best = positions == left.argmax(-1, keepdim=True)
        chosen = chosen | best
        left = left.masked_fill(best, lowest)
    return chosen if mask is None else chosen & mask


class SoftWeighting(nn.Module):
    """A share of every position: softmax (Bahdanau et al., 2015)."""

    def forward(self, scores: Tensor, mask: Tensor | None) -> Tensor:
        """`scores` `[…, queries, keys]` to weights."""
        return masked_softmax(scores, mask)


class HardWeighting(nn.Module):
    """The `top_k` best positions share the weight by softmax; a single one has all of it (Xu et al., 2015, 4.1).

    In training the choice is drawn: Gumbel noise is added to the scores (Kool et al., 2019), and the gradient is that
    of softmax at `temperature` over all positions, noise included (straight-through: Jang et al., 2017).

    Args:
        top_k: how many positions are chosen; fewer where fewer are allowed.
        temperature: of the softmax whose gradient is taken.
    """

    def __init__(self, top_k: int = 1, temperature: float = 1.0) -> None:
        super().__init__()
        self.top_k = top_k
        self.temperature = temperature

    def forward(self, scores: Tensor, mask: Tensor | None) -> Tensor:
        """`scores` `[…, queries, keys]` to weights."""
        if not self.training:
            return masked_softmax(scores, best_positions(scores, mask, self.top_k))
        noisy = scores + _gumbel(scores)
        chosen = masked_softmax(scores, best_positions(noisy, mask, self.top_k)).detach()
        relaxed = masked_softmax(noisy / self.temperature, mask)
        return chosen + (relaxed - relaxed.detach())


def _gumbel(scores: Tensor) -> Tensor:
    """Noise of the standard Gumbel distribution, finite in any precision, of the shape and dtype of `scores`."""
    drawn = torch.empty_like(scores, dtype=torch.float32).exponential_()
    return -drawn.clamp(min=torch.finfo(torch.float32).tiny).log().to(scores.dtype)


@dataclass(frozen=True)
class WeightingKind:
    """A row of `WEIGHTINGS`.

    build: the module of a `top_k` and a `temperature`.
    is_softmax: whether the weights are the softmax of all scores, as in the ONNX operator `Attention`.
    options: those of `AttentionOptions` that it uses.
    """

    build: Callable[[int, float], nn.Module]
    is_softmax: bool
    options: frozenset[str]


WEIGHTINGS: Mapping[str, WeightingKind] = MappingProxyType(
    {
        "soft": WeightingKind(lambda top_k, temperature: SoftWeighting(), True, frozenset({"dropout"})),
        "hard": WeightingKind(HardWeighting, False, frozenset({"top_k", "temperature"})),
    }
)
"""Name → weighting."""
