"""CLIP's image transformer, which GIT has too, around a checkpoint's own weights. https://arxiv.org/abs/2103.00020"""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor, nn

from xattn_export.families.layers.clip import ClipLayer
from xattn_export.families.layers.common import for_each_image

__all__ = ["ClipEmbeddings", "ClipVision"]


class ClipVision(nn.Module):
    """Image `[batch, 3, height, width]` to tokens `[batch, 1 + patches, width]`, before the last normalisation."""

    def __init__(self, vision: Any) -> None:
        super().__init__()
        self.embeddings = ClipEmbeddings(vision)
        self.layers = nn.ModuleList(ClipLayer(layer) for layer in vision.encoder.layers)

    def forward(self, pixel_values: Tensor) -> Tensor:
        tokens = self.embeddings(pixel_values)
        for layer in self.layers:
            tokens = layer(tokens)
        return cast(Tensor, tokens)


class ClipEmbeddings(nn.Module):
    """Image to a class token and patches with their positions, normalised: what the first layer takes."""

    def __init__(self, vision: Any) -> None:
        super().__init__()
        self.patches = vision.embeddings.patch_embedding
        self.first = vision.embeddings.class_embedding
        self.positions = vision.embeddings.position_embedding
        self.norm = vision.pre_layrnorm

    def forward(self, pixel_values: Tensor) -> Tensor:
        patches = self.patches(pixel_values).flatten(2).transpose(1, 2)
        tokens = torch.cat((for_each_image(self.first, patches), patches), 1)
        return cast(Tensor, self.norm(tokens + self.positions.weight))
