"""Frames that follow each other in time become tokens that know their place and see each other."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from xattn_edge.attention import Tokens
from xattn_edge.encoders.transformer import SelfAttentionLayer, attend_to_each_other

__all__ = ["FrameTransformer"]


class FrameTransformer(nn.Module):
    """A learned embedding of each place in time, then self-attention layers that leave padding out.

    Args:
        width: features of a frame.
        longest: most frames.
        layers: number of self-attention layers.
        heads: attention heads of each.
        dropout: probability, in training.
    """

    def __init__(self, width: int, longest: int, layers: int, heads: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.position = nn.Parameter(torch.randn(longest, width) * 0.02)
        self.layers = nn.ModuleList(SelfAttentionLayer(width, heads, dropout) for _ in range(layers))
        self.norm = nn.LayerNorm(width)

    def forward(self, frames: Tensor, mask: Tensor) -> Tokens:
        """`[batch, frames, width]` and bool `[batch, frames]` to tokens of the same shape.

        Raises:
            ValueError: more frames than there are places.
        """
        count = frames.shape[1]
        if not torch.compiler.is_exporting() and count > len(self.position):
            raise ValueError(f"frames: expected at most {len(self.position)}, found {count}")
        # By lookup: a slice of the table would bind the number of frames to its size in an exported program.
        places = F.embedding(torch.arange(count, device=frames.device), self.position)
        return Tokens(self.norm(attend_to_each_other(self.layers, frames + places, mask)), mask)
