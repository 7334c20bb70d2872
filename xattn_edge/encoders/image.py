"""An image becomes image tokens: the positions of a convolutional feature map.

A small residual network (He et al., 2016), a learned embedding of each position, then Transformer layers, in which the
positions see the whole image.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import chain, pairwise
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from xattn_edge.attention import Tokens, every_token
from xattn_edge.encoders.transformer import SelfAttentionLayer

__all__ = ["CnnEncoder", "check_feature_map"]


class CnnEncoder(nn.Module):
    """Feature-map tokens of a square image.

    Args:
        image_size_px: side of the image; a multiple of the total stride, which is 2 to the power of `len(channels)`.
        channels: of the feature map at strides 2, 4, 8, …
        blocks: residual blocks at strides 4, 8, …; one number fewer than `channels`.
        width: features of a token.
        layers: self-attention layers over the tokens.
        heads: attention heads of those layers.
    """

    def __init__(
        self,
        image_size_px: int,
        channels: Sequence[int],
        blocks: Sequence[int],
        width: int,
        layers: int,
        heads: int,
    ) -> None:
        super().__init__()
        stages = zip(pairwise(channels), blocks, strict=True)
        self.feature_map = nn.Sequential(
            nn.Conv2d(3, channels[0], 3, stride=2, padding=1, bias=False),
            nn.BatchNorm2d(channels[0]),
            nn.ReLU(),
            *chain.from_iterable(_stage(narrow, wide, count) for (narrow, wide), count in stages),
        )
        self.projection = nn.Linear(channels[-1], width)
        self.position = nn.Parameter(torch.randn((image_size_px >> len(channels)) ** 2, width) * 0.02)
        self.layers = nn.ModuleList(SelfAttentionLayer(width, heads) for _ in range(layers))
        self.norm = nn.LayerNorm(width)

    @property
    def side(self) -> int:
        """Positions along each side of the feature map."""
        return math.isqrt(len(self.position))

    def forward(self, pixel_values: Tensor) -> Tokens:
        """`[batch, 3, side, side]` float, normalised, to `[batch, (side / stride)², width]`, none of them padding."""
        tokens = self.embed(pixel_values)
        for layer in self.layers:
            tokens = layer(tokens)
        return every_token(self.norm(tokens))

    def embed(self, pixel_values: Tensor) -> Tensor:
        """The tokens `[batch, (side / stride)², width]` that the layers begin with."""
        features = self.feature_map(pixel_values).flatten(2).transpose(1, 2)
        return cast(Tensor, self.projection(features) + self.position)


def check_feature_map(image_size_px: int, channels: Sequence[int], blocks: Sequence[int]) -> None:
    """Check that a `CnnEncoder` can have these numbers.

    Raises:
        ValueError: it cannot; says why.
    """
    stride = 1 << len(channels)
    if len(blocks) != len(channels) - 1:
        raise ValueError(f"blocks: expected {len(channels) - 1} numbers, found {len(blocks)}")
    if image_size_px % stride:
        raise ValueError(f"image_size_px: {image_size_px} is not a multiple of the stride {stride}")


class _ResidualBlock(nn.Module):
    """Two 3×3 convolutions around which the input is added (projected where the shape changes)."""

    def __init__(self, channels_in: int, channels_out: int, stride: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(channels_in, channels_out, 3, stride, padding=1, bias=False)
        self.first_norm = nn.BatchNorm2d(channels_out)
        self.second = nn.Conv2d(channels_out, channels_out, 3, padding=1, bias=False)
        self.second_norm = nn.BatchNorm2d(channels_out)
        same = stride == 1 and channels_in == channels_out
        self.shortcut = nn.Identity() if same else nn.Conv2d(channels_in, channels_out, 1, stride)

    def forward(self, x: Tensor) -> Tensor:
        inner = F.relu(self.first_norm(self.first(x)))
        return F.relu(self.second_norm(self.second(inner)) + self.shortcut(x))


def _stage(channels_in: int, channels_out: int, blocks: int) -> list[nn.Module]:
    """`blocks` residual blocks, of which the first halves the sides."""
    rest = [_ResidualBlock(channels_out, channels_out, 1) for _ in range(blocks - 1)]
    return [_ResidualBlock(channels_in, channels_out, 2), *rest]
