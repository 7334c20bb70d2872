"""Connectors that make one image token of a square of patches, for which they lie in rows and columns."""

from __future__ import annotations

from typing import Any, cast

from torch import Tensor, nn
from torch.nn import functional as F

from xattn_export.families.layers.common import RmsNorm

__all__ = ["PixelShuffle", "PooledProjection"]


class PixelShuffle(nn.Module):
    """Squares of `factor` × `factor` patches side by side in one token: `[batch, side², width]` to fewer, wider ones.

    The patches of a square follow each other row by row. https://arxiv.org/abs/2408.12637
    """

    def __init__(self, side: int, factor: int) -> None:
        super().__init__()
        self.squares = side // factor
        self.factor = factor

    def forward(self, tokens: Tensor) -> Tensor:
        width = tokens.shape[-1]
        grid = tokens.reshape(-1, self.squares, self.factor, self.squares, self.factor * width)
        return grid.transpose(2, 3).reshape(-1, self.squares**2, self.factor**2 * width)


class PooledProjection(nn.Module):
    """Gemma 3's: the mean of every square, normalised, and projected. https://arxiv.org/abs/2503.19786"""

    def __init__(self, projector: Any, side: int, factor: int) -> None:
        """`projector`: Transformers' `Gemma3MultiModalProjector`, of `side` patches across and as many down."""
        super().__init__()
        self.side = side
        self.factor = factor
        self.norm = RmsNorm(projector.mm_soft_emb_norm, 1.0)
        self.projection = projector.mm_input_projection_weight

    def forward(self, tokens: Tensor) -> Tensor:
        grid = tokens.transpose(1, 2).reshape(-1, tokens.shape[2], self.side, self.side)
        pooled = F.avg_pool2d(grid, self.factor).flatten(2).transpose(1, 2)
        return cast(Tensor, self.norm(pooled) @ self.projection)
