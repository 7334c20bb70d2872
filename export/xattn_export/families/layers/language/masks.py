"""Which tokens see which, as masks that a graph computes: causal, in a window, both ways within blocks.

A block is a run of tokens that see each other: the prompt of a PaliGemma (https://arxiv.org/abs/2407.07726), an image's
tokens of a Gemma 3 (https://arxiv.org/abs/2503.19786).
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

__all__ = ["Blocks", "blocks_of_prompt", "blocks_of_runs", "mask_of"]


class Blocks(NamedTuple):
    """The blocks of new tokens.

    numbers: int64 `[batch, length]`; tokens of one number from 0 on see each other, those of -1 are in no block.
    in_window: whether a layer with a window sees only what of a block is not before it.
    """

    numbers: Tensor
    in_window: bool


def mask_of(past: int, tokens: Tensor, window: int | None = None, blocks: Blocks | None = None) -> Tensor:
    """What `tokens` `[batch, length, …]` after `past` others see, bool.

    Args:
        window: how many tokens one sees, itself the last of them; None for all up to itself.

    Returns:
        `[length, past + length]`, or `[batch, 1, length, past + length]` with `blocks`.
    """
    length = tokens.shape[1]
    columns = torch.arange(past + length, device=tokens.device)
    rows = torch.arange(past, past + length, device=tokens.device)[:, None]
    seen = columns <= rows
    if blocks is not None and blocks.in_window:
        seen = seen | _together(blocks.numbers, past)
    if window is not None:
        seen = seen & (columns > rows - window)
    if blocks is not None and not blocks.in_window:
        seen = seen | _together(blocks.numbers, past)
    return seen


def _together(numbers: Tensor, past: int) -> Tensor:
    """Which tokens are in one block, bool `[batch, 1, length, past + length]`; those of the cache are in none."""
    before = torch.full((numbers.shape[0], past), -1, dtype=numbers.dtype, device=numbers.device)
    columns = torch.cat((before, numbers), 1)[:, None, None]
    return (numbers[:, None, :, None] == columns) & (columns >= 0)


def blocks_of_prompt(input_ids: Tensor, past: int) -> Blocks:
    """One block of all tokens `[batch, length]` where nothing is before them; what follows a cache has none."""
    is_after = torch.arange(past, past + 1, device=input_ids.device) > 0
    return Blocks(torch.zeros_like(input_ids) - is_after.long(), in_window=False)


def blocks_of_runs(input_ids: Tensor, placeholder: int) -> Blocks:
    """A block for every run of `placeholder` in each row of `[batch, length]`."""
    is_image = (input_ids == placeholder).long()
    before = torch.cat((torch.zeros_like(is_image[:, :1]), is_image[:, :-1]), 1)
    number = (is_image * (1 - before)).cumsum(1) - 1
    return Blocks(torch.where(is_image > 0, number, -1), in_window=True)
