"""Speech becomes tokens: the columns of a log-mel spectrogram, seen by convolutions and then by a Transformer.

The spectrogram is made outside the graph, by `xattn_runtime.preprocess.speech`.
"""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from xattn_edge.attention import Tokens
from xattn_edge.attention.checks import check_divides, check_mask, check_tokens
from xattn_edge.encoders.sequence import FrameTransformer

__all__ = ["SpeechEncoder"]

_STRIDE = 4


class SpeechEncoder(nn.Module):
    """Two convolutions over time and frequency, each of stride 2, then self-attention over time (Dong et al., 2018).

    Padding is zero before each convolution, so that it does not matter how much of it there is.

    Args:
        bands: of the spectrogram; a multiple of 4.
        longest: most frames of the spectrogram.
        channels: of the convolutions.
        width: features of a token.
        layers: self-attention layers over the tokens.
        heads: attention heads of those layers.
        dropout: probability, in training.

    Raises:
        ValueError: bands that are no multiple of 4.
    """

    def __init__(
        self, bands: int, longest: int, channels: int, width: int, layers: int, heads: int, dropout: float = 0.0
    ) -> None:
        super().__init__()
        check_divides(_STRIDE, bands=bands)
        self.bands = bands
        self.first = nn.Conv2d(1, channels, 3, stride=2, padding=1)
        self.second = nn.Conv2d(channels, channels, 3, stride=2, padding=1)
        self.projection = nn.Linear(channels * (bands // _STRIDE), width)
        self.frames = FrameTransformer(width, -(-longest // _STRIDE), layers, heads, dropout)

    def forward(self, log_mel: Tensor, mask: Tensor) -> Tokens:
        """Spectrograms `[batch, frames, bands]` and bool `[batch, frames]` to `[batch, frames / 4 rounded up, width]`.

        Raises:
            ValueError: no frame, another number of bands, or a mask of another shape; says what was expected.
        """
        check_tokens("log_mel", log_mel, "batch", "frames", width=self.bands)
        check_mask("mask", mask, {"batch": log_mel.shape[0], "frames": log_mel.shape[1]})
        seen = F.gelu(self.first(_silent(log_mel[:, None], mask)))
        mask = mask[:, ::2]
        seen = F.gelu(self.second(_silent(seen, mask)))
        mask = mask[:, ::2]
        columns = self.projection(seen.transpose(1, 2).flatten(2))
        return cast(Tokens, self.frames(columns, mask))


def _silent(seen: Tensor, mask: Tensor) -> Tensor:
    """`[batch, channels, frames, bands]` with zeros where `mask` `[batch, frames]` has no frame."""
    return torch.where(mask[:, None, :, None], seen, 0.0)
