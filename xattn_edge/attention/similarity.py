"""How alike a query and a key are: a score for every pair of them.

All take query and key split into heads, `[…, queries, width]` and `[…, keys, width]`, and return scores `[…, queries,
keys]`. A new similarity is a class here and one row of `SIMILARITIES`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from types import MappingProxyType

import torch
from torch import Tensor, nn
from torch.nn import functional as F

__all__ = [
    "SIMILARITIES",
    "AdditiveSimilarity",
    "AttentionSimilarity",
    "CosineSimilarity",
    "DotProduct",
    "ProductSimilarity",
    "ScaledDotProduct",
]

_INITIAL_TEMPERATURE = 0.1
_LARGEST_SHARPNESS = 100.0


class AttentionSimilarity(nn.Module):
    """What every similarity is.

    Args:
        heads: of query and key.
        width: of one head.
    """

    def __init__(self, heads: int, width: int) -> None:
        super().__init__()
        self.heads, self.width = heads, width

    def forward(self, query: Tensor, key: Tensor) -> Tensor:
        """`[…, queries, width]` and `[…, keys, width]` to `[…, queries, keys]`."""
        raise NotImplementedError


class ProductSimilarity(AttentionSimilarity):
    """A similarity that is a scaled product of vectors made of query and key: the ONNX operator `Attention` has it."""

    def operands(self, query: Tensor, key: Tensor) -> tuple[Tensor, Tensor]:
        """The two factors of the product, of the shapes of `query` and `key`."""
        return query, key

    def scale(self) -> float:
        """The factor of the product."""
        return 1.0

    def forward(self, query: Tensor, key: Tensor) -> Tensor:
        """As `AttentionSimilarity.forward`."""
        left, right = self.operands(query, key)
        return left @ right.transpose(-2, -1) * self.scale()


class DotProduct(ProductSimilarity):
    """`q · k` (Luong et al., 2015, section 3.1)."""


class ScaledDotProduct(ProductSimilarity):
    """`q · k / √width` (Vaswani et al., 2017, section 3.2.1)."""

    def scale(self) -> float:
        """As `ProductSimilarity.scale`."""
        return 1 / math.sqrt(self.width)


class CosineSimilarity(ProductSimilarity):
    """`q · k / (|q| |k| τ)` (Graves et al., 2014) with a learned temperature τ ≥ 1/100 (Radford et al., 2021).

    The parameter `log_scale` is `-log τ`; τ starts at 0.1.
    """

    def __init__(self, heads: int, width: int) -> None:
        super().__init__(heads, width)
        self.log_scale = nn.Parameter(torch.tensor(-math.log(_INITIAL_TEMPERATURE)))

    def operands(self, query: Tensor, key: Tensor) -> tuple[Tensor, Tensor]:
        """As `ProductSimilarity.operands`: vectors of length 1, those of the query divided by τ."""
        sharpness = self.log_scale.exp().clamp(max=_LARGEST_SHARPNESS)
        return F.normalize(query, dim=-1) * sharpness, F.normalize(key, dim=-1)


class AdditiveSimilarity(AttentionSimilarity):
    """`e · tanh(q + k)`, with a learned vector `e` a head (Bahdanau et al., 2015, appendix A.1.2).

    The linear maps of that paper are those that made `q` and `k`.
    """

    def __init__(self, heads: int, width: int) -> None:
        super().__init__(heads, width)
        self.energy = nn.Parameter(torch.randn(heads, width) / math.sqrt(width))

    def forward(self, query: Tensor, key: Tensor) -> Tensor:
        """As `AttentionSimilarity.forward`, with `[batch, heads]` before all else."""
        heads, width = self.energy.shape
        energy = self.energy.view(heads, *(1 for _ in query.shape[2:-1]), width, 1)
        return (torch.tanh(query[..., :, None, :] + key[..., None, :, :]) @ energy).squeeze(-1)


SIMILARITIES: Mapping[str, type[AttentionSimilarity]] = MappingProxyType(
    {
        "dot": DotProduct,
        "scaled_dot": ScaledDotProduct,
        "cosine": CosineSimilarity,
        "additive": AdditiveSimilarity,
    }
)
"""Name → similarity. One that is a `ProductSimilarity` is exported as the operator `Attention`."""
