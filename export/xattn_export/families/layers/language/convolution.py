"""The layer of LFM2 that mixes neighbouring tokens by a gated, short convolution instead of attention.

Of the tokens before it keeps what the kernel reaches, whatever their number: a state of fixed size. The architecture is
that of https://arxiv.org/abs/2511.23404; names are those of Transformers' modeling_lfm2.py.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from xattn_export.families.layers.common import RmsNorm
from xattn_export.families.layers.language.feed_forward import GatedFeedForward

__all__ = ["ConvolutionLayer"]


class ConvolutionLayer(GatedFeedForward):
    """A short causal convolution of every channel by itself, between two gates; then a gated feed-forward network."""

    def __init__(self, layer: Any) -> None:
        """`layer`: with Llama's names for its norms and its network, and `conv`, LFM2's."""
        super().__init__(layer)
        conv = layer.conv
        self.convolution_norm = RmsNorm(layer.input_layernorm)
        self.gates_and_values = conv.in_proj
        self.convolution_output = conv.out_proj
        # [kernel, width]: a factor for every channel of a token so many places before.
        self.kernel = nn.Parameter(conv.conv.weight.detach().squeeze(1).T.contiguous(), requires_grad=False)
        self.bias = conv.conv.bias

    @property
    def state(self) -> tuple[int, int]:
        """Its width, and of how many tokens it is."""
        return self.kernel.shape[1], self.kernel.shape[0] - 1

    def with_state(self, tokens: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        """New tokens after those that `state` `[batch, width, kernel - 1]` keeps; and the state after them.

        A sum of shifted products, not the operator `Conv`, whose kernel for CPUs takes each channel by itself.
        """
        before, after, values = self.gates_and_values(self.convolution_norm(tokens)).chunk(3, -1)
        known = torch.cat((state.transpose(1, 2), before * values), 1)
        reach = self.kernel.shape[0] - 1
        mixed = known[:, reach:] * self.kernel[reach]
        for place in range(reach):
            mixed = mixed + known[:, place : place - reach] * self.kernel[place]
        mixed = mixed if self.bias is None else mixed + self.bias
        tokens = tokens + self.convolution_output(after * mixed)
        return self.fed_forward(tokens), known[:, -reach:].transpose(1, 2)
