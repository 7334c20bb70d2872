"""Positions of a text with images in it that follow the images' rows and columns.

A token of the text has one position; an image token has three: that of its image, and its row and column in it. After
an image the text continues behind the greatest of them (M-RoPE, https://arxiv.org/abs/2409.12191). All of it is
computed in the graph, from the tokens and the grids of the images, at the prompt and at every step after it.
"""

from __future__ import annotations

import torch
from torch import Tensor

from xattn_export.families.layers.common import image_places

__all__ = ["grid_positions"]


def grid_positions(input_ids: Tensor, image_grids: Tensor, placeholder: int, past: int) -> Tensor:
    """Positions of tokens after a cache: of the image, of the row and of the column.

    Args:
        input_ids: int64 `[batch, length]`; the `placeholder`s of a prompt stand for the tokens of its images in turn.
        image_grids: int64 `[batch, images, 2]`, rows and columns of the image tokens of every image; zeros for none.
        past: how many tokens the cache holds; if there are any, they have all the images.

    Returns:
        int64 `[3, batch, length]`.
    """
    length = input_ids.shape[1]
    is_image = image_places(input_ids, placeholder, past)
    rows, columns = image_grids.unbind(-1)
    sizes = rows * columns
    # Of the image tokens of the prompt, how many are before each token; after a cache, all.
    before = is_image.long().cumsum(1) - is_image.long()
    read = torch.arange(past, past + 1, device=input_ids.device).clamp(max=1) * sizes.sum(1, keepdim=True)
    before = before + read
    is_done = (before[..., None] >= sizes.cumsum(1)[:, None]).long()
    # An image of n tokens takes as many positions as its longer side has.
    saved = ((sizes - torch.maximum(rows, columns))[:, None] * is_done).sum(-1)
    place = torch.arange(past, past + length, device=input_ids.device)
    within = before - (sizes[:, None] * is_done).sum(-1)
    across = _of_image(columns, is_done)
    down, along = within // across, within % across
    start = place - saved - torch.where(is_image, within, 0)
    shift = [torch.zeros_like(down), down, along]
    return torch.stack([start + torch.where(is_image, axis, 0) for axis in shift])


def _of_image(columns: Tensor, is_done: Tensor) -> Tensor:
    """Columns of the image that each token is in, `[batch, length]`, at least 1: the first that is not done."""
    number = is_done.sum(-1).clamp(max=columns.shape[1] - 1)
    return columns.gather(1, number).clamp(min=1)
