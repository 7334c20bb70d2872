"""Multi-head attention whose keys and values are projected apart from the queries.

Cross-modal attention asks many queries of one context: the tokens of a picture are projected to keys and values once,
then every question or every decoding step attends to them. So the projection of the context is a method of its own.

Knows nothing about what the two sequences mean.
"""

from __future__ import annotations

from typing import NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

__all__ = ["KeyValue", "MultiHeadAttention", "causal_mask"]


class KeyValue(NamedTuple):
    """Projected context: both `[batch, heads, tokens, head_width]`, float."""

    key: Tensor
    value: Tensor


class MultiHeadAttention(nn.Module):
    """Scaled dot-product attention with several heads (Vaswani et al., 2017, section 3.2).

    Args:
        width: features of queries and output; `heads` must divide it.
        heads: number of attention heads.
        context_width: features of the sequence attended to; `width` when it is the same sequence.

    Raises:
        ValueError: `heads` does not divide `width`.
    """

    def __init__(self, width: int, heads: int, context_width: int | None = None) -> None:
        super().__init__()
        if width % heads:
            raise ValueError(f"{heads} heads do not divide a width of {width}")
        context_width = width if context_width is None else context_width
        self.heads = heads
        self.query = nn.Linear(width, width)
        self.key = nn.Linear(context_width, width)
        self.value = nn.Linear(context_width, width)
        self.output = nn.Linear(width, width)

    def project_context(self, context: Tensor) -> KeyValue:
        """Keys and values of `context`, `[batch, tokens, context_width]`."""
        return KeyValue(self._split(self.key(context)), self._split(self.value(context)))

    def forward(self, queries: Tensor, context: KeyValue, mask: Tensor | None = None) -> Tensor:
        """Attend from `queries` to a projected context.

        Args:
            queries: `[batch, length, width]`.
            context: what `project_context` gave.
            mask: bool, `[length, tokens]` or `[batch, 1, length, tokens]`, true where attention is allowed.

        Returns:
            `[batch, length, width]`.
        """
        attended = F.scaled_dot_product_attention(
            self._split(self.query(queries)), context.key, context.value, attn_mask=mask
        )
        return cast(Tensor, self.output(attended.transpose(1, 2).flatten(2)))

    def _split(self, projected: Tensor) -> Tensor:
        batch, tokens, width = projected.shape
        return projected.view(batch, tokens, self.heads, width // self.heads).transpose(1, 2)


def causal_mask(length: int, past: int, device: torch.device) -> Tensor:
    """Bool `[length, past + length]`: the query at `past + i` sees the keys up to and with itself."""
    keys = torch.arange(past + length, device=device)
    queries = torch.arange(past, past + length, device=device)
    return keys[None, :] <= queries[:, None]
