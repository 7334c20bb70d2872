"""Early fusion: features of the modalities are put together before anything is decided (Baltrušaitis et al., 2019)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from xattn_edge.fusion.protocol import Fused, without_missing

__all__ = ["Concatenation", "Sum"]


class Concatenation(nn.Module):
    """`gelu(W [x_1; …; x_M] + b)`, with zeros for a missing modality.

    Args:
        widths: of the modalities.
        width: of the output.
    """

    def __init__(self, widths: Sequence[int], width: int) -> None:
        super().__init__()
        self.widths = tuple(widths)
        self.linear = nn.Linear(sum(widths), width)

    def forward(self, modalities: Sequence[Tensor], present: Tensor | None = None) -> Fused:
        """`[batch, width of each]` to `[batch, width]`; no weights."""
        parts, present = without_missing(modalities, self.widths, present)
        fused = F.gelu(cast(Tensor, self.linear(torch.cat(parts, -1))))
        return Fused(fused.masked_fill(~present.any(-1, keepdim=True), 0.0), None)


class Sum(nn.Module):
    """`x_1 + … + x_M`, without those that are missing.

    Args:
        widths: of the modalities; all the same.
        width: of the output; the same, too.

    Raises:
        ValueError: they differ.
    """

    def __init__(self, widths: Sequence[int], width: int) -> None:
        super().__init__()
        if set(widths) != {width}:
            raise ValueError(f"widths: expected {width} of every modality that is summed, found {list(widths)}")
        self.widths = tuple(widths)

    def forward(self, modalities: Sequence[Tensor], present: Tensor | None = None) -> Fused:
        """`[batch, width]` each to `[batch, width]`; no weights."""
        parts, _ = without_missing(modalities, self.widths, present)
        return Fused(torch.stack(parts, 1).sum(1), None)
