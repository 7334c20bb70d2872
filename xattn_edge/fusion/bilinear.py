"""Bilinear fusion: every feature of one modality meets every feature of the other, through a product of low rank."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from xattn_edge.fusion.protocol import Fused, without_missing

__all__ = ["BilinearFusion"]


class BilinearFusion(nn.Module):
    """`Σ_r ∘_m tanh(W_mr x_m + b_mr)`: the low-rank core of MUTAN (Ben-Younes et al., 2017, equation 8).

    With a rank of 1 it is the low-rank bilinear pooling of MLB (Kim et al., 2017); with more than two modalities, the
    low-rank multimodal fusion of Liu et al. (2018). A missing modality counts as a factor of 1.

    Args:
        widths: of the modalities.
        width: of the output.
        rank: number of products that are summed.

    Raises:
        ValueError: a rank below 1.
    """

    def __init__(self, widths: Sequence[int], width: int, rank: int = 4) -> None:
        super().__init__()
        if rank < 1:
            raise ValueError(f"rank: expected at least 1, found {rank}")
        self.widths, self.rank = tuple(widths), rank
        self.factors = nn.ModuleList(nn.Linear(each, rank * width) for each in widths)

    def forward(self, modalities: Sequence[Tensor], present: Tensor | None = None) -> Fused:
        """`[batch, width of each]` to `[batch, width]`; no weights."""
        parts, present = without_missing(modalities, self.widths, present)
        factors = [torch.tanh(factor(part)) for factor, part in zip(self.factors, parts, strict=True)]
        product = torch.ones_like(factors[0])
        for factor, has in zip(factors, present.unbind(1), strict=True):
            product = product * factor.masked_fill(~has[:, None], 1.0)
        summed = product.view(product.shape[0], self.rank, product.shape[1] // self.rank).sum(1)
        return Fused(summed.masked_fill(~present.any(-1, keepdim=True), 0.0), None)
