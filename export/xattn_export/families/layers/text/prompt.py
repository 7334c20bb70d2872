"""A prompt that is read with an image: one encoder over the image's tokens and those of the text."""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn

from xattn_export.families.layers.text.decoders import CrossKeys

__all__ = ["PromptGraph", "mask_with_image"]


class PromptGraph(nn.Module):
    """Image tokens and a prompt, read in one sequence, to cross-attention keys and values of the decoder.

    encoder: vectors `[batch, tokens, width]` and their mask to as many states.
    """

    def __init__(self, words: nn.Module, encoder: nn.Module, cross: CrossKeys) -> None:
        super().__init__()
        self.words = words
        self.encoder = encoder
        self.cross = cross

    def forward(self, input_ids: Tensor, attention_mask: Tensor, image_tokens: Tensor) -> tuple[Tensor, ...]:
        tokens = torch.cat((image_tokens, self.words(input_ids)), 1)
        states = self.encoder(tokens, mask_with_image(attention_mask, image_tokens))
        return cast("tuple[Tensor, ...]", self.cross(states))


def mask_with_image(attention_mask: Tensor, image_tokens: Tensor) -> Tensor:
    """The mask of a prompt with that of the image tokens before it."""
    return torch.cat((attention_mask.new_ones(image_tokens.shape[:2]), attention_mask), 1)
