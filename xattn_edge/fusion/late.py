"""Late fusion: each modality decides alone, and their decisions are put together (Baltrušaitis et al., 2019).

Decisions are logits `[batch, classes]`, so that their weighted mean is the weighted geometric mean of probabilities.
Weights are shared out anew among the modalities that a sample has.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from xattn_edge.attention.weighting import masked_softmax
from xattn_edge.fusion.protocol import Fused, all_present

__all__ = ["LearnedDecision", "WeightedDecision", "weighted_sum"]


class WeightedDecision(nn.Module):
    """`Σ_m w_m y_m / Σ_m w_m` over the modalities that are present, with fixed weights; by default their mean.

    Args:
        modalities: their number.
        weights: one each, above 0, for example how accurate each is alone.

    Raises:
        ValueError: another number of weights, or one that is not above 0.
    """

    weights: Tensor

    def __init__(self, modalities: int, weights: Sequence[float] | None = None) -> None:
        super().__init__()
        weights = [1.0] * modalities if weights is None else weights
        if len(weights) != modalities or min(weights) <= 0:
            raise ValueError(f"weights: expected {modalities} above 0, one a modality, found {list(weights)}")
        self.register_buffer("weights", torch.tensor(weights, dtype=torch.float32))

    def forward(self, modalities: Sequence[Tensor], present: Tensor | None = None) -> Fused:
        """`[batch, classes]` each to `[batch, classes]`; weights `[batch, modalities]`."""
        present = all_present(modalities) if present is None else present
        return weighted_sum(modalities, masked_softmax(self.weights.log().expand(present.shape), present))


class LearnedDecision(nn.Module):
    """`Σ_m w_m y_m` with `w` the softmax of one learned number a modality, over those that are present.

    Args:
        modalities: their number.
    """

    def __init__(self, modalities: int) -> None:
        super().__init__()
        self.scores = nn.Parameter(torch.zeros(modalities))

    def forward(self, modalities: Sequence[Tensor], present: Tensor | None = None) -> Fused:
        """`[batch, classes]` each to `[batch, classes]`; weights `[batch, modalities]`."""
        present = all_present(modalities) if present is None else present
        return weighted_sum(modalities, masked_softmax(self.scores.expand(present.shape), present))


def weighted_sum(modalities: Sequence[Tensor], weights: Tensor) -> Fused:
    """`Σ_m w_m x_m` of `[batch, width]` each and `[batch, modalities]` or `[batch, modalities, width]`."""
    shares = weights[..., None] if weights.ndim == 2 else weights
    return Fused((torch.stack(list(modalities), 1) * shares).sum(1), weights)
