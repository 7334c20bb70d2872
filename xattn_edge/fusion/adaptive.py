"""Adaptive fusion: weights are learned per modality, and hold when one of them is missing."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from xattn_edge.attention.weighting import masked_softmax
from xattn_edge.fusion.late import weighted_sum
from xattn_edge.fusion.protocol import Fused, without_missing

__all__ = ["AdaptiveFusion"]


class AdaptiveFusion(nn.Module):
    """`Σ_m w_m gelu(W_m x_m + b_m)` with `w` the softmax of one learned number a modality, over those that are present.

    In training each modality of a sample is left out with the probability `drop`, unless that would be all of them, so
    that what is learned does not lean on one alone (ModDrop: Neverova et al., 2016).

    Args:
        widths: of the modalities.
        width: of the output.
        drop: probability, in training.

    Raises:
        ValueError: a probability below 0 or not below 1.
    """

    def __init__(self, widths: Sequence[int], width: int, drop: float = 0.2) -> None:
        super().__init__()
        if not 0 <= drop < 1:
            raise ValueError(f"drop: expected 0 or more and less than 1, found {drop}")
        self.widths, self.drop = tuple(widths), drop
        self.project = nn.ModuleList(nn.Linear(each, width) for each in widths)
        self.scores = nn.Parameter(torch.zeros(len(widths)))

    def forward(self, modalities: Sequence[Tensor], present: Tensor | None = None) -> Fused:
        """`[batch, width of each]` to `[batch, width]`; weights `[batch, modalities]`."""
        parts, present = without_missing(modalities, self.widths, present)
        if self.training and self.drop:
            remaining = present & (torch.rand(present.shape, device=present.device) >= self.drop)
            present = torch.where(remaining.any(-1, keepdim=True), remaining, present)
        weights = masked_softmax(self.scores.expand(present.shape), present)
        projected = [F.gelu(project(part)) for project, part in zip(self.project, parts, strict=True)]
        return weighted_sum(projected, weights)
