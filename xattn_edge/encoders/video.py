"""A video becomes tokens: each frame is encoded as an image, then all of them in their order."""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn

from xattn_edge.attention import Tokens
from xattn_edge.attention.checks import check_mask
from xattn_edge.encoders.image import CnnEncoder
from xattn_edge.encoders.patches import PatchEncoder
from xattn_edge.encoders.sequence import FrameTransformer

__all__ = ["VideoEncoder"]


class VideoEncoder(nn.Module):
    """The mean of the image tokens of each frame, then self-attention over time (Arnab et al., 2021, model 2).

    Args:
        image_encoder: of one frame; its tokens are `width` wide.
        longest: most frames.
        width: features of a token.
        layers: self-attention layers over the frames.
        heads: attention heads of those layers.
        dropout: probability, in training.
    """

    def __init__(
        self,
        image_encoder: CnnEncoder | PatchEncoder,
        longest: int,
        width: int,
        layers: int,
        heads: int,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.image_encoder = image_encoder
        self.frames = FrameTransformer(width, longest, layers, heads, dropout)

    def forward(self, pixel_values: Tensor, mask: Tensor) -> Tokens:
        """Frames `[batch, frames, 3, side, side]` and bool `[batch, frames]` to `[batch, frames, width]`.

        Raises:
            ValueError: no frame, or a shape that does not fit; says which was expected and found.
        """
        shape = list(pixel_values.shape)
        if len(shape) != 5 or (not torch.compiler.is_exporting() and shape[1] == 0):
            raise ValueError(f"pixel_values: expected [batch, frames, 3, side, side] and a frame, found {shape}")
        check_mask("mask", mask, {"batch": shape[0], "frames": shape[1]})
        tokens = cast(Tokens, self.image_encoder(pixel_values.flatten(0, 1)))
        means = tokens.features.mean(1)
        return cast(Tokens, self.frames(means.view(shape[0], shape[1], means.shape[1]), mask))
