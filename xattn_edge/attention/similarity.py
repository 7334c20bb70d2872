"""How alike a query and a key are: a score for every pair of them.

All take query and key split into heads, `[…, queries, width]` and `[…, keys, width]`, and give `[…, queries, keys]`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from types import MappingProxyType

import torch
from torch import Tensor, nn
from torch.nn import functional as F

__all__ = [
    "SIMILARITIES",
    "AdditiveSimilarity",
    "CosineSimilarity",
    "DotProduct",
    "ScaledDotProduct",
    "Similarity",
]

_INITIAL_TEMPERATURE = 0.1
_MOST_SHARPENED = 100.0


class DotProduct(nn.Module):
    """`q · k` (Luong et al., 2015, section 3.1), and the base of the similarities that are one of other operands."""

    def operands(self, query: Tensor, key: Tensor) -> tuple[Tensor, Tensor]:
        """What is multiplied with what; the shapes stay."""
        return query, key

    def scale(self, width: int) -> float:
        """What the products of vectors of `width` are multiplied by."""
        return 1.0

    def forward(self, query: Tensor, key: Tensor) -> Tensor:
        """`[…, queries, width]` and `[…, keys, width]` to `[…, queries, keys]`."""
        left, right = self.operands(query, key)
        return left @ right.transpose(-2, -1) * self.scale(query.shape[-1])


class ScaledDotProduct(DotProduct):
    """`q · k / √width` (Vaswani et al., 2017, section 3.2.1)."""

    def scale(self, width: int) -> float:
        return 1 / math.sqrt(width)


class CosineSimilarity(DotProduct):
    """`q · k / (|q| |k| τ)` (Graves et al., 2014) with a learned temperature τ ≥ 1/100 (Radford et al., 2021).

    The parameter `log_scale` is `-log τ`; τ starts at 0.1.
    """

    def __init__(self) -> None:
        super().__init__()
        self.log_scale = nn.Parameter(torch.tensor(-math.log(_INITIAL_TEMPERATURE)))

    def operands(self, query: Tensor, key: Tensor) -> tuple[Tensor, Tensor]:
        sharpened = self.log_scale.exp().clamp(max=_MOST_SHARPENED)
        return F.normalize(query, dim=-1) * sharpened, F.normalize(key, dim=-1)


class AdditiveSimilarity(nn.Module):
    """`e · tanh(q + k)`, with a learned vector `e` a head (Bahdanau et al., 2015, appendix A.1.2).

    The linear maps of that paper are those that made `q` and `k`.

    Args:
        heads: of query and key.
        width: of one head.
    """

    def __init__(self, heads: int, width: int) -> None:
        super().__init__()
        self.energy = nn.Parameter(torch.randn(heads, width) / math.sqrt(width))

    def forward(self, query: Tensor, key: Tensor) -> Tensor:
        """As the others, with `[batch, heads]` before all else."""
        heads, width = self.energy.shape
        energy = self.energy.view(heads, *(1 for _ in query.shape[2:-1]), width, 1)
        return (torch.tanh(query[..., :, None, :] + key[..., None, :, :]) @ energy).squeeze(-1)


Similarity = DotProduct | AdditiveSimilarity

SIMILARITIES: Mapping[str, Callable[[int, int], Similarity]] = MappingProxyType(
    {
        "dot": lambda heads, width: DotProduct(),
        "scaled_dot": lambda heads, width: ScaledDotProduct(),
        "cosine": lambda heads, width: CosineSimilarity(),
        "additive": AdditiveSimilarity,
    }
)
"""Name → similarity for a number of heads and the width of each."""
