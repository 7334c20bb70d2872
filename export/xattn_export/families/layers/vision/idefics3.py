"""Idefics3's image encoder around a checkpoint's own weights, over flat tensors: SigLIP's layers and a connector.

The architecture is that of https://arxiv.org/abs/2408.12637 and https://arxiv.org/abs/2504.05299 (SmolVLM); names are
those of Transformers' modeling_idefics3.py. It knows the layers; how they are used is in `idefics3.py`.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from xattn_export.families.layers.clip import ClipLayer

__all__ = ["Idefics3ImageTokens", "PixelShuffle"]


class Idefics3ImageTokens(nn.Module):
    """Tiles `[batch, 3, side, side]` to the image tokens `[batch, tokens, width]` that the language model reads."""

    def __init__(self, model: Any, side_px: int) -> None:
        """`model`: Idefics3Model or SmolVLMModel."""
        super().__init__()
        vision = model.vision_model
        self.patches = vision.embeddings.patch_embedding
        positions = vision.embeddings.position_embedding
        self.positions = nn.Buffer(F.embedding(_places(vision.embeddings, side_px), positions.weight).detach())
        self.layers = nn.ModuleList(ClipLayer(layer) for layer in vision.encoder.layers)
        self.norm = vision.post_layernorm
        self.shuffle = PixelShuffle(side_px // vision.embeddings.patch_size, model.connector.scale_factor)
        self.projection = model.connector.modality_projection.proj

    def forward(self, pixel_values: Tensor) -> tuple[Tensor]:
        tokens = self.patches(pixel_values).flatten(2).transpose(1, 2) + self.positions
        for layer in self.layers:
            tokens = layer(tokens)
        return (self.projection(self.shuffle(self.norm(tokens))),)


class PixelShuffle(nn.Module):
    """Squares of `factor` × `factor` patches side by side in one token: `[batch, side², width]` to fewer, wider ones.

    The patches of a square follow each other row by row.
    """

    def __init__(self, side: int, factor: int) -> None:
        super().__init__()
        self.squares = side // factor
        self.factor = factor

    def forward(self, tokens: Tensor) -> Tensor:
        width = tokens.shape[-1]
        grid = tokens.reshape(-1, self.squares, self.factor, self.squares, self.factor * width)
        return grid.transpose(2, 3).reshape(-1, self.squares**2, self.factor**2 * width)


def _places(embeddings: Any, side_px: int) -> Tensor:
    """The rows of the table of positions that the model itself takes for a tile without padding, `[1, patches]`.

    Its sides are cut into equal parts in floating point, so that rounding has a say in where a patch lies.
    """
    captured: list[Tensor] = []
    handle = embeddings.position_embedding.register_forward_pre_hook(lambda _, inputs: captured.append(inputs[0]))
    patches = side_px // embeddings.patch_size
    try:
        with torch.no_grad():
            embeddings(torch.zeros(1, 3, side_px, side_px), torch.ones(1, patches, patches, dtype=torch.bool))
    finally:
        handle.remove()
    return captured[0]
