"""The two graphs of a vision-language model: image to image tokens, and one step of the decoder that reads them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from xattn_export.families.layers.common import embed_with_image, head
from xattn_export.families.layers.language.masks import Blocks, blocks_of_prompt, blocks_of_runs
from xattn_export.families.layers.language.table import language_decoder
from xattn_export.families.transformers.vision_language.architecture import Architecture

__all__ = ["DecoderGraph", "ImageGraph"]


class ImageGraph(nn.Module):
    """Images, or tiles, `[batch, 3, side, side]` to the image tokens `[batch, tokens, width]` that a decoder reads."""

    def __init__(self, tower: nn.Module, connector: nn.Module) -> None:
        super().__init__()
        self.tower = tower
        self.connector = connector

    def forward(self, pixel_values: Tensor) -> tuple[Tensor]:
        return (self.connector(self.tower(pixel_values)),)


class DecoderGraph(nn.Module):
    """One decoding step: tokens after a cache, image tokens in their places; logits of the last position alone."""

    def __init__(self, architecture: Architecture, model: Any) -> None:
        super().__init__()
        self.mask = architecture.mask
        self.first_position = architecture.first_position
        self.words = model.get_input_embeddings()
        self.decoder = language_decoder(model.get_decoder())
        self.head = architecture.head(model)
        self.placeholder = int(model.config.image_token_id)

    def forward(self, input_ids: Tensor, image_tokens: Tensor, *past: Tensor) -> tuple[Tensor, ...]:
        before = past[0].shape[2]
        tokens = embed_with_image(input_ids, image_tokens, self.words, self.placeholder, before)
        tokens, present = self.decoder.step(
            tokens, past, position_ids=self._positions(input_ids, before), blocks=self._blocks(input_ids, before)
        )
        return *head(self.head(tokens[:, -1])), *present

    def _positions(self, input_ids: Tensor, before: int) -> Tensor | None:
        """`[1, length]`; None where positions are those after the cache."""
        if not self.first_position:
            return None
        first = before + self.first_position
        return torch.arange(first, first + input_ids.shape[1], device=input_ids.device)[None]

    def _blocks(self, input_ids: Tensor, before: int) -> Blocks | None:
        """What sees what comes after it: in the prompt alone."""
        if self.mask == "causal":
            return None
        if self.mask == "prompt":
            return blocks_of_prompt(input_ids, before)
        runs = blocks_of_runs(input_ids, self.placeholder)
        is_prompt = torch.arange(before, before + 1, device=input_ids.device) == 0
        return runs._replace(numbers=torch.where(is_prompt, runs.numbers, -1))
