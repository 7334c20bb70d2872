"""Keys and values as graphs have them, one tensor after the other, and the outputs of a decoder's head."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import chain

from torch import Tensor

from xattn_edge.attention import KeyValue

__all__ = ["flatten", "head", "pairs"]


def head(logits: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """`logits`, `next_token` and `next_log_prob` of logits `[batch, vocabulary]`."""
    return logits, logits.argmax(-1), logits.log_softmax(-1).amax(-1)


def flatten(series: Iterable[KeyValue]) -> tuple[Tensor, ...]:
    """`key_0`, `value_0`, `key_1`, …"""
    return tuple(chain.from_iterable(series))


def pairs(tensors: Sequence[Tensor]) -> list[KeyValue]:
    """The inverse of `flatten`."""
    return [KeyValue(*pair) for pair in zip(tensors[::2], tensors[1::2], strict=True)]
