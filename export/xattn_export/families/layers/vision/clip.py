"""CLIP's image transformer, which GIT has too, around a checkpoint's own weights. https://arxiv.org/abs/2103.00020"""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor, nn

from xattn_export.families.layers.clip import ClipLayer
from xattn_export.families.layers.common import for_each_image

__all__ = ["ClipVision"]


class ClipVision(nn.Module):
    """Image `[batch, 3, height, width]` to tokens `[batch, 1 + patches, width]`, before the last normalisation."""

    def __init__(self, vision: Any) -> None:
        super().__init__()
        self.embeddings = vision.embeddings
        self.first_norm = vision.pre_layrnorm
        self.layers = nn.ModuleList(ClipLayer(layer) for layer in vision.encoder.layers)

    def forward(self, pixel_values: Tensor) -> Tensor:
        embeddings = self.embeddings
        patches = embeddings.patch_embedding(pixel_values).flatten(2).transpose(1, 2)
        first = for_each_image(embeddings.class_embedding, patches)
        tokens = self.first_norm(torch.cat((first, patches), 1) + embeddings.position_embedding.weight)
        for layer in self.layers:
            tokens = layer(tokens)
        return cast(Tensor, tokens)
