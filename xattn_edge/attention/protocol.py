"""The inputs and outputs of every attention here, so that one can stand in for another.

An attention answers queries from keys and values; a mechanism is made of attentions, and lets two modalities read each
other.
"""

from __future__ import annotations

from typing import NamedTuple, Protocol

import torch
from torch import Tensor

__all__ = ["Attended", "Attention", "Exchange", "Mechanism", "Tokens", "every_token"]


class Tokens(NamedTuple):
    """A sequence of one modality: the output of an encoder.

    features: float `[batch, tokens, width]`.
    mask: bool `[batch, tokens]`, false for padding, whose features no result depends on.
    """

    features: Tensor
    mask: Tensor


def every_token(features: Tensor) -> Tokens:
    """`features` `[batch, tokens, width]` without padding."""
    return Tokens(features, features.new_ones(features.shape[:2], dtype=torch.bool))


class Attended(NamedTuple):
    """The result of an attention, `(output, weights)` as of `torch.nn.MultiheadAttention`.

    output: float `[batch, queries, width]`.
    weights: float `[batch, heads, queries, keys]`, how much of each position every query took: rows sum to 1, masked
        positions have 0, and a row whose every position is masked is 0 throughout, as is its output. None without
        `need_weights`.
    """

    output: Tensor
    weights: Tensor | None


class Attention(Protocol):
    """Queries of one sequence to the positions of another."""

    def __call__(
        self, query: Tensor, key: Tensor, value: Tensor, *, mask: Tensor | None = None, need_weights: bool = True
    ) -> Attended:
        """Attend from `query` `[batch, queries, dim_q]` to `key`, and read `value`, both `[batch, keys, dim_k]`.

        `mask` is bool, `[batch, keys]` or `[batch, queries, keys]`, true where attention is allowed. Without
        `need_weights` the output may be computed in a faster way.
        """
        ...


class Exchange(NamedTuple):
    """What two modalities read from each other, for a model to add to them.

    text, image: float `[batch, tokens, width]`; None for a side that reads nothing.
    weights: of every attention in the order in which they were computed; empty without `need_weights`.
    """

    text: Tensor | None
    image: Tensor | None
    weights: tuple[Tensor, ...]


class Mechanism(Protocol):
    """A way for two modalities of the same width to read each other.

    `image` stands for whatever a text is paired with: positions of an image, frames of speech or of a video.
    """

    def __call__(self, text: Tokens, image: Tokens, *, need_weights: bool = True) -> Exchange:
        """What each side reads, of the shape of its features."""
        ...
