"""Towers over patches and their grid, for images of any size and shape, around a checkpoint's own weights.

Where each patch lies is computed in the graph, from the number of rows and columns: it turns queries and keys (rotary
positions in two axes), and where a tower has windows it says which patches see each other. Names are those of
Transformers' modeling_qwen2_vl.py and the like: Qwen2-VL (https://arxiv.org/abs/2409.12191), Qwen2.5-VL
(https://arxiv.org/abs/2502.13923) and Qwen3-VL (https://arxiv.org/abs/2511.21631). It knows patches and no text.
"""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from xattn_export.families.layers.common import RmsNorm, attend

__all__ = ["PatchGridTower"]


class PatchGridTower(nn.Module):
    """Patches `[batch, patches, values]` of one grid to image tokens `[batch, patches / merge², width]`.

    Where the tower has DeepStack, the features of every such layer stand behind those of the last one, so that a token
    is `1 + layers` times as wide.
    """

    def __init__(self, vision: Any) -> None:
        """`vision`: the vision model of Qwen2-VL, Qwen2.5-VL or Qwen3-VL."""
        super().__init__()
        self.merge = int(vision.spatial_merge_size)
        self.patches = _linear(vision.patch_embed.proj)
        self.frequencies = nn.Buffer(vision.rotary_pos_emb.inv_freq.detach().clone(), persistent=False)
        table = getattr(vision, "pos_embed", None)
        self.positions = None if table is None else InterpolatedPositions(table)
        whole = getattr(vision, "fullatt_block_indexes", None)
        # Patches along each side of a window; layers that are not named see their window alone.
        self.window = 0 if whole is None else int(vision.window_size // vision.patch_size // self.merge) * self.merge
        self.layers = nn.ModuleList(PatchLayer(block) for block in vision.blocks)
        self.windowed = [whole is not None and number not in whole for number in range(len(self.layers))]
        self.merger = PatchMerger(vision.merger, self.merge)
        self.stacked = [int(number) for number in getattr(vision, "deepstack_visual_indexes", ())]
        mergers = getattr(vision, "deepstack_merger_list", ())
        self.stacked_mergers = nn.ModuleList(PatchMerger(merger, self.merge) for merger in mergers)

    def forward(self, patches: Tensor, grid: Tensor) -> tuple[Tensor]:
        rows, columns = self._places(grid, patches.shape[1])
        tokens = self.patches(patches)
        if self.positions is not None:
            tokens = tokens + self.positions(rows, columns, grid)
        rotation, mask = self._rotation(rows, columns), self._mask(rows, columns)
        stacked = []
        for number, layer in enumerate(self.layers):
            tokens = layer(tokens, rotation, mask if self.windowed[number] else None)
            if number in self.stacked:
                stacked.append(self.stacked_mergers[self.stacked.index(number)](tokens))
        return (torch.cat((self.merger(tokens), *stacked), -1),)

    def _places(self, grid: Tensor, count: int) -> tuple[Tensor, Tensor]:
        """Row and column of every patch, int64 `[patches]`: those of a merged square follow each other."""
        number = torch.arange(count, device=grid.device)
        square, within = number // self.merge**2, number % self.merge**2
        across = grid[1] // self.merge
        rows = square // across * self.merge + within // self.merge
        return rows, square % across * self.merge + within % self.merge

    def _rotation(self, rows: Tensor, columns: Tensor) -> tuple[Tensor, Tensor]:
        """Cosines and sines of every patch, `[patches, 1, head_width]` each; the sines of a head's first half negative.

        Of each half of a head the first half turns by the row, the other by the column.
        """
        angles = torch.cat([places[:, None].float() * self.frequencies for places in (rows, columns)], -1)[:, None]
        cosine, sine = angles.cos(), angles.sin()
        return torch.cat((cosine, cosine), -1), torch.cat((-sine, sine), -1)

    def _mask(self, rows: Tensor, columns: Tensor) -> Tensor | None:
        """Bool `[patches, patches]`, true within a window."""
        if not any(self.windowed):
            return None
        same = [(places[:, None] // self.window) == (places[None] // self.window) for places in (rows, columns)]
        return same[0] & same[1]


class PatchLayer(nn.Module):
    """Attention with rotated queries and keys, then a feed-forward network, each on normalised tokens."""

    def __init__(self, block: Any) -> None:
        super().__init__()
        attention = block.attn
        self.heads, self.scale = int(attention.num_heads), float(attention.scaling)
        self.qkv = attention.qkv
        self.attention_output = attention.proj
        self.attention_norm = _norm(block.norm1)
        self.feed_forward = block.mlp
        self.feed_forward_norm = _norm(block.norm2)

    def forward(self, tokens: Tensor, rotation: tuple[Tensor, Tensor], mask: Tensor | None) -> Tensor:
        """`[batch, patches, width]`; `mask` as for `attend`."""
        width = tokens.shape[2]
        rotated, value = torch.split(self.qkv(self.attention_norm(tokens)), [2 * width, width], -1)
        query, key = torch.split(self._rotated(rotated, rotation), [width, width], -1)
        attended = attend(query, key, value, self.heads, mask=mask, scale=self.scale)
        tokens = tokens + self.attention_output(attended)
        return cast(Tensor, tokens + self.feed_forward(self.feed_forward_norm(tokens)))

    def _rotated(self, tokens: Tensor, rotation: tuple[Tensor, Tensor]) -> Tensor:
        (cosine, sine), (batch, length, width) = rotation, tokens.shape
        heads = tokens.view(batch, length, 2 * self.heads, width // (2 * self.heads))
        first, second = heads.chunk(2, -1)
        return (heads * cosine + torch.cat((second, first), -1) * sine).flatten(2)


class PatchMerger(nn.Module):
    """Squares of patches, side by side, to a token each: `[batch, patches, width]` to `[batch, tokens, …]`."""

    def __init__(self, merger: Any, merge: int) -> None:
        super().__init__()
        self.squared = merge**2
        self.norms_square = bool(getattr(merger, "use_postshuffle_norm", False))
        self.norm = _norm(merger.ln_q if hasattr(merger, "ln_q") else merger.norm)
        layers = merger.mlp if hasattr(merger, "mlp") else (merger.linear_fc1, merger.act_fn, merger.linear_fc2)
        self.layers = nn.ModuleList(layers)

    def forward(self, tokens: Tensor) -> Tensor:
        batch, _, width = tokens.shape
        if not self.norms_square:
            tokens = self.norm(tokens)
        squares = tokens.reshape(batch, -1, self.squared * width)
        if self.norms_square:
            squares = self.norm(squares)
        for layer in self.layers:
            squares = layer(squares)
        return squares


class InterpolatedPositions(nn.Module):
    """Learned positions of a square grid, stretched to the grid of an image: corners upon corners, linear between."""

    def __init__(self, table: nn.Embedding) -> None:
        super().__init__()
        self.weight = table.weight
        self.side = round(table.num_embeddings**0.5)

    def forward(self, rows: Tensor, columns: Tensor, grid: Tensor) -> Tensor:
        """`[patches, width]` for the patches in `rows` and `columns` of a `grid`."""
        vertical, horizontal = self._taps(rows, grid[0]), self._taps(columns, grid[1])
        parts = [
            F.embedding(row * self.side + column, self.weight) * (row_share * column_share)[:, None]
            for row, row_share in vertical
            for column, column_share in horizontal
        ]
        return torch.stack(parts).sum(0)

    def _taps(self, places: Tensor, count: Tensor) -> list[tuple[Tensor, Tensor]]:
        """The two positions of the table beside each place, and the share of each."""
        exact = places.float() * (self.side - 1) / (count - 1).clamp(min=1)
        low = exact.floor()
        share = exact - low
        below = low.long().clamp(0, self.side - 1)
        return [(below, 1 - share), ((below + 1).clamp(max=self.side - 1), share)]


def _linear(convolution: Any) -> nn.Linear:
    """A convolution over blocks that do not overlap as a product with the values of a block."""
    weight = convolution.weight.detach().flatten(1)
    linear = nn.Linear(weight.shape[1], weight.shape[0], bias=convolution.bias is not None, device="meta")
    linear.weight = nn.Parameter(weight, requires_grad=False)
    if convolution.bias is not None:
        linear.bias = nn.Parameter(convolution.bias.detach(), requires_grad=False)
    return linear


def _norm(norm: Any) -> nn.Module:
    return RmsNorm(norm) if hasattr(norm, "variance_epsilon") else cast(nn.Module, norm)
