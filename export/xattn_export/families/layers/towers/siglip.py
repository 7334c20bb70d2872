"""SigLIP's tower, and that of Idefics3 and SmolVLM, which looks positions up by where a patch lies in its image.

SigLIP: https://arxiv.org/abs/2303.15343; Idefics3: https://arxiv.org/abs/2408.12637. Names are those of Transformers'
modeling_siglip.py and modeling_idefics3.py.
"""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from xattn_export.families.layers.clip import ClipLayer
from xattn_export.families.layers.towers.tower import Features, Tower

__all__ = ["idefics3_tower", "siglip_tower"]


class PatchEmbeddings(nn.Module):
    """Images to patches, with a vector of its own added to each place, `[1, patches, width]`."""

    def __init__(self, patches: nn.Module, positions: Tensor) -> None:
        super().__init__()
        self.patches = patches
        self.positions = nn.Buffer(positions.detach())

    def forward(self, pixel_values: Tensor) -> Tensor:
        return cast(Tensor, self.patches(pixel_values).flatten(2).transpose(1, 2) + self.positions)


def siglip_tower(vision: Any, side_px: int, features: Features) -> nn.Module:
    """The tower of a `SiglipVisionModel`, whose images have the size of its configuration."""
    return _tower(vision, vision.embeddings.position_embedding.weight[None], features)


def idefics3_tower(vision: Any, side_px: int, features: Features) -> nn.Module:
    """The tower of an `Idefics3VisionTransformer`, or SmolVLM's, for images of any one size."""
    places = _places(vision.embeddings, side_px)
    return _tower(vision, F.embedding(places, vision.embeddings.position_embedding.weight), features)


def _tower(vision: Any, positions: Tensor, features: Features) -> Tower:
    return Tower(
        PatchEmbeddings(vision.embeddings.patch_embedding, positions),
        (ClipLayer(layer) for layer in vision.encoder.layers),
        vision.post_layernorm,
        features,
    )


def _places(embeddings: Any, side_px: int) -> Tensor:
    """The rows of the table of positions that the model itself takes for an image without padding, `[1, patches]`.

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
