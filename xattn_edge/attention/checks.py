"""Checks of the inputs and sizes of attention. They name what was expected and found.

Sizes are not compared while a graph is exported: its axes are symbols, and what they must be is in its contract.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from xattn_edge.attention.protocol import Tokens

__all__ = [
    "broadcast_mask",
    "check_divides",
    "check_heads",
    "check_mask",
    "check_same_tokens",
    "check_sides",
    "check_tokens",
]


def check_divides(heads: int, **dims: int) -> None:
    """Each of `dims` falls into `heads` parts.

    Raises:
        ValueError: one does not; names it.
    """
    for name, dim in dims.items():
        if dim < 1 or dim % heads:
            raise ValueError(f"{name}: expected a positive multiple of {heads} heads, found {dim}")


def check_heads(width: int, heads: Mapping[str, int]) -> None:
    """Each of `heads`, by the part of a model that has them, divides `width`.

    Raises:
        ValueError: one does not; names the part.
    """
    for part, number in heads.items():
        if number < 1 or width % number:
            raise ValueError(f"{part}: heads: expected a divisor of the width {width}, found {number}")


def check_tokens(name: str, tokens: Tensor, *axes: str, width: int) -> None:
    """`tokens` is `[*axes, width]`, and no axis is empty.

    Raises:
        ValueError: it is not; names `name`, the shape expected and the one found.
    """
    shape = list(tokens.shape)
    expected = f"[{', '.join((*axes, str(width)))}]"
    if len(shape) != len(axes) + 1 or shape[-1] != width:
        raise ValueError(f"{name}: expected the shape {expected}, found {shape}")
    if torch.compiler.is_exporting():
        return
    for axis, size in zip(axes, shape, strict=False):
        if size == 0:
            raise ValueError(f"{name}: expected the shape {expected} with at least one of {axis}, found {shape}")


def check_mask(name: str, mask: Tensor, *shapes: Mapping[str, int]) -> None:
    """`mask` is bool and of one of `shapes`, each of which says axis → size.

    Raises:
        ValueError: it is not; names `name`, the shapes expected and the one found.
    """
    if mask.dtype != torch.bool:
        raise ValueError(f"{name}: expected bool, true where attention is allowed, found {mask.dtype}")
    found = list(mask.shape)
    same_rank = [list(shape.values()) for shape in shapes if len(shape) == len(found)]
    if not same_rank or (found not in same_rank and not torch.compiler.is_exporting()):
        expected = " or ".join(f"{list(shape.values())} ({', '.join(shape)})" for shape in shapes)
        raise ValueError(f"{name}: expected the shape {expected}, found {found}")


def check_sides(text: Tokens, image: Tokens) -> None:
    """Both are tokens of one batch with a mask of theirs, and neither is empty.

    Raises:
        ValueError: they are not; names the side, the shape expected and the one found.
    """
    batch = text.features.shape[0]
    for name, (features, mask) in (("text", text), ("image", image)):
        check_tokens(name, features, "batch", "tokens", width=features.shape[-1])
        if not torch.compiler.is_exporting() and features.shape[0] != batch:
            raise ValueError(
                f"expected text and image of the same batch, found {list(text.features.shape)} and "
                f"{list(image.features.shape)}"
            )
        check_mask(f"{name} mask", mask, {"batch": batch, "tokens": features.shape[1]})


def check_same_tokens(key: Tensor, value: Tensor) -> None:
    """Keys and values `[batch, keys, width]` are of the same tokens.

    Raises:
        ValueError: their batches or numbers of tokens differ.
    """
    if not torch.compiler.is_exporting() and key.shape[:2] != value.shape[:2]:
        raise ValueError(
            f"expected key and value of the same batch and tokens, found {list(key.shape)} and {list(value.shape)}"
        )


def broadcast_mask(mask: Tensor | None, query: Tensor, key: Tensor) -> Tensor | None:
    """`mask` as `[batch, 1, queries, keys]`, which every head shares; None stays None.

    Args:
        mask: bool, `[batch, keys]` or `[batch, queries, keys]`.
        query: `[batch, queries, …]`.
        key: `[batch, keys, …]`.

    Raises:
        ValueError: the batches differ, or the mask is of another dtype, rank or size.
    """
    batch, queries, count = query.shape[0], query.shape[1], key.shape[1]
    if not torch.compiler.is_exporting() and key.shape[0] != batch:
        raise ValueError(f"expected query and key of the same batch, found {list(query.shape)} and {list(key.shape)}")
    if mask is None:
        return None
    keys, rows = {"batch": batch, "keys": count}, {"batch": batch, "queries": queries, "keys": count}
    check_mask("mask", mask, keys, rows)
    every_row = mask[:, None] if mask.ndim == 2 else mask
    return every_row[:, None].expand(batch, 1, queries, count)
