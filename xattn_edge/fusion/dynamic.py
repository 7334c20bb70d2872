"""Dynamic fusion: gates that are computed from the sample say how much of each modality goes into each feature."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from xattn_edge.attention.weighting import masked_softmax
from xattn_edge.fusion.late import weighted_sum
from xattn_edge.fusion.protocol import Fused, without_missing

__all__ = ["DynamicFusion"]


class DynamicFusion(nn.Module):
    """`Σ_m g_m ∘ tanh(W_m x_m + b_m)` with `g` the softmax over the modalities of `G_m [x_1; …; x_M]`.

    With two modalities it is the gated multimodal unit (Arevalo et al., 2017), whose gate is the sigmoid of the
    difference of the two.

    Args:
        widths: of the modalities.
        width: of the output.
    """

    def __init__(self, widths: Sequence[int], width: int) -> None:
        super().__init__()
        self.widths = tuple(widths)
        self.project = nn.ModuleList(nn.Linear(each, width) for each in widths)
        self.gate = nn.ModuleList(nn.Linear(sum(widths), width, bias=False) for _ in widths)

    def forward(self, modalities: Sequence[Tensor], present: Tensor | None = None) -> Fused:
        """`[batch, width of each]` to `[batch, width]`; weights `[batch, modalities, width]`."""
        parts, present = without_missing(modalities, self.widths, present)
        sample = torch.cat(parts, -1)
        scores = torch.stack([gate(sample) for gate in self.gate], -1)
        gates = masked_softmax(scores, present[:, None, :]).transpose(1, 2)
        projected = [torch.tanh(project(part)) for project, part in zip(self.project, parts, strict=True)]
        return weighted_sum(projected, gates)
