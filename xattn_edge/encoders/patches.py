"""An image becomes image tokens: its patches, which a Transformer looks at (Dosovitskiy et al., 2021)."""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn

from xattn_edge.attention import Tokens, every_token
from xattn_edge.encoders.transformer import SelfAttentionLayer

__all__ = ["PatchEncoder", "check_patches"]


class PatchEncoder(nn.Module):
    """Patch tokens of a square image: `W patch + b + position`, then self-attention layers.

    Args:
        image_size_px: side of the image.
        patch_px: side of a patch; divides that of the image.
        width: features of a token.
        layers: self-attention layers over the tokens.
        heads: attention heads of those layers.
        dropout: probability, in training.

    Raises:
        ValueError: the patches do not fill the image.
    """

    def __init__(
        self, image_size_px: int, patch_px: int, width: int, layers: int, heads: int, dropout: float = 0.0
    ) -> None:
        super().__init__()
        check_patches(image_size_px, patch_px)
        self.side = image_size_px // patch_px
        self.projection = nn.Conv2d(3, width, patch_px, stride=patch_px)
        self.position = nn.Parameter(torch.randn(self.side**2, width) * 0.02)
        self.layers = nn.ModuleList(SelfAttentionLayer(width, heads, dropout) for _ in range(layers))
        self.norm = nn.LayerNorm(width)

    def forward(self, pixel_values: Tensor) -> Tokens:
        """`[batch, 3, side, side]` float, normalised, to `[batch, (side / patch)², width]`, none of them padding."""
        tokens = self.embed(pixel_values)
        for layer in self.layers:
            tokens = layer(tokens)
        return every_token(self.norm(tokens))

    def embed(self, pixel_values: Tensor) -> Tensor:
        """The tokens `[batch, (side / patch)², width]` that the layers begin with."""
        return cast(Tensor, self.projection(pixel_values).flatten(2).transpose(1, 2) + self.position)


def check_patches(image_size_px: int, patch_px: int) -> None:
    """Check that patches of `patch_px` fill a square image of `image_size_px`.

    Raises:
        ValueError: they do not.
    """
    if patch_px < 1 or image_size_px % patch_px:
        raise ValueError(f"patch_px: expected a divisor of {image_size_px} px, found {patch_px}")
