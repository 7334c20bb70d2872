"""DaViT, Florence-2's image encoder, around a checkpoint's own weights, for images of one size.

Its blocks attend within windows of the image, then between channels: https://arxiv.org/abs/2204.03645. Names are
those of Transformers' modeling_florence2.py. It knows images and their feature map, no text.
"""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from xattn_export.families.layers.common import attend

__all__ = ["Davit"]

Grid = tuple[int, int]


class Davit(nn.Module):
    """Image `[batch, 3, height, width]` to its feature map as tokens, `[batch, rows × columns, width]`.

    grid: rows and columns of the map.
    """

    def __init__(self, model: Any, size_px: Grid) -> None:
        super().__init__()
        self.grid = size_px
        layers: list[nn.Module] = []
        for convolution, blocks in zip(model.convs, model.blocks, strict=True):
            layers.append(DavitMerging(convolution))
            self.grid = _reduced(convolution.conv, self.grid)
            for block in blocks:
                spatial, channel = block.spatial_block, block.channel_block
                layers.append(DavitLayer(spatial, _WindowAttention(spatial.window_attn, self.grid), self.grid))
                layers.append(DavitLayer(channel, _ChannelAttention(channel.channel_attn), self.grid))
        self.layers = nn.ModuleList(layers)

    def forward(self, pixel_values: Tensor) -> Tensor:
        features = pixel_values
        for layer in self.layers:
            features = layer(features)
        return _tokens(features)


class DavitMerging(nn.Module):
    """A convolution with a stride, from one stage's feature map to the smaller one of the next; normalised."""

    def __init__(self, merging: Any) -> None:
        super().__init__()
        self.convolution = merging.conv
        self.norm = merging.norm
        self.norm_first = merging.pre_norm

    def forward(self, features: Tensor) -> Tensor:
        if self.norm_first:
            return cast(Tensor, self.convolution(self._normed(features)))
        return self._normed(self.convolution(features))

    def _normed(self, features: Tensor) -> Tensor:
        return cast(Tensor, self.norm(features.permute(0, 2, 3, 1))).permute(0, 3, 1, 2)


class DavitLayer(nn.Module):
    """A convolution and attention, another one and a feed-forward network; the output of each is added to its input."""

    def __init__(self, block: Any, attention: nn.Module, grid: Grid) -> None:
        super().__init__()
        self.grid = grid
        self.attention_convolution = block.conv1
        self.attention_norm = block.norm1
        self.attention = attention
        self.feed_forward_convolution = block.conv2
        self.feed_forward_norm = block.norm2
        self.feed_forward = block.ffn

    def forward(self, features: Tensor) -> Tensor:
        tokens = _tokens(features + self.attention_convolution(features))
        tokens = tokens + self.attention(self.attention_norm(tokens))
        features = self._features(tokens)
        tokens = _tokens(features + self.feed_forward_convolution(features))
        return self._features(tokens + self.feed_forward(self.feed_forward_norm(tokens)))

    def _features(self, tokens: Tensor) -> Tensor:
        return tokens.transpose(1, 2).reshape(-1, tokens.shape[2], *self.grid)


class _WindowAttention(nn.Module):
    """Attention of tokens to those of the same window; the map is padded with zeros to whole windows, which count."""

    def __init__(self, attention: Any, grid: Grid) -> None:
        super().__init__()
        self.grid = grid
        self.side = attention.window_size
        self.windows = (-(-grid[0] // self.side), -(-grid[1] // self.side))
        self.heads = attention.num_heads
        self.scale = attention.scale
        self.qkv = attention.qkv
        self.output = attention.proj

    def forward(self, tokens: Tensor) -> Tensor:
        query, key, value = self.qkv(self._cut(tokens)).chunk(3, -1)
        attended = attend(query, key, value, self.heads, scale=self.scale)
        return self._joined(self.output(attended))

    def _cut(self, tokens: Tensor) -> Tensor:
        """`[batch, rows × columns, width]` to `[batch × windows, side × side, width]`."""
        (height, width), (down, across) = self.grid, self.windows
        squares = tokens.reshape(-1, height, width, tokens.shape[2])
        margin = (across * self.side - width, down * self.side - height)
        if any(margin):
            squares = F.pad(squares, (0, 0, 0, margin[0], 0, margin[1]))
        squares = squares.reshape(-1, down, self.side, across, self.side, tokens.shape[2])
        return squares.transpose(2, 3).reshape(-1, self.side * self.side, tokens.shape[2])

    def _joined(self, windows: Tensor) -> Tensor:
        """The inverse of `_cut`."""
        (height, width), (down, across) = self.grid, self.windows
        squares = windows.reshape(-1, down, across, self.side, self.side, windows.shape[2]).transpose(2, 3)
        squares = squares.reshape(-1, down * self.side, across * self.side, windows.shape[2])
        return squares[:, :height, :width].flatten(1, 2)


class _ChannelAttention(nn.Module):
    """Attention of channels to those of the same group: a channel is a vector of its values at all places."""

    def __init__(self, attention: Any) -> None:
        super().__init__()
        self.groups = attention.groups
        self.qkv = attention.qkv
        self.output = attention.proj

    def forward(self, tokens: Tensor) -> Tensor:
        _, places, width = tokens.shape
        channels = self.qkv(tokens).transpose(1, 2).reshape(-1, 3 * self.groups, width // self.groups, places)
        query, key, value = channels.chunk(3, 1)
        # The operator's own scale, by the number of places, is DaViT's.
        attended, _, _, _ = torch.onnx.ops.attention(query, key, value)
        return cast(Tensor, self.output(attended.flatten(1, 2).transpose(1, 2)))


def _tokens(features: Tensor) -> Tensor:
    """`[batch, width, rows, columns]` to `[batch, rows × columns, width]`."""
    return features.flatten(2).transpose(1, 2)


def _reduced(convolution: nn.Conv2d, grid: Grid) -> Grid:
    """Rows and columns of what a convolution makes of a map of `grid`."""
    padding = cast("tuple[int, ...]", convolution.padding)
    sides = zip(grid, padding, convolution.kernel_size, convolution.stride, strict=True)
    rows, columns = ((side + 2 * margin - kernel) // stride + 1 for side, margin, kernel, stride in sides)
    return rows, columns
