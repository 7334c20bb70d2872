"""CLIP's tower. https://arxiv.org/abs/2103.00020; names are those of Transformers' modeling_clip.py."""

from __future__ import annotations

from typing import Any

from torch import nn

from xattn_export.families.layers.clip import ClipLayer
from xattn_export.families.layers.towers.tower import Features, Tower
from xattn_export.families.layers.vision.clip import ClipEmbeddings

__all__ = ["clip_tower"]


def clip_tower(vision: Any, side_px: int, features: Features) -> nn.Module:
    """The tower of a `CLIPVisionModel`, whose own result has no norm after the last layer."""
    layers = (ClipLayer(layer) for layer in vision.encoder.layers)
    return Tower(ClipEmbeddings(vision), layers, None, features)
