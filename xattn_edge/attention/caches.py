"""Keys and values of several layers as one row of tensors: `key_0`, `value_0`, `key_1`, …"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import chain

from torch import Tensor

from xattn_edge.attention.cross_modal import KeyValue

__all__ = ["flatten", "pairs"]


def flatten(layers: Iterable[KeyValue]) -> tuple[Tensor, ...]:
    """`key_0`, `value_0`, `key_1`, …"""
    return tuple(chain.from_iterable(layers))


def pairs(tensors: Sequence[Tensor]) -> list[KeyValue]:
    """The inverse of `flatten`."""
    return [KeyValue(*pair) for pair in zip(tensors[::2], tensors[1::2], strict=True)]
