"""The table of towers, by the `model_type` of their vision configuration in Transformers."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

from torch import nn

from xattn_export.families.layers.towers.clip import clip_tower
from xattn_export.families.layers.towers.internvit import internvit_tower
from xattn_export.families.layers.towers.siglip import idefics3_tower, siglip_tower
from xattn_export.families.layers.towers.tower import WHOLE, Features
from xattn_export.families.layers.vision.blip import BlipVisionEncoder
from xattn_runtime.errors import CheckpointError
from xattn_runtime.json_reader import show

__all__ = ["TOWERS", "WITH_CLASS_TOKEN", "check_tower", "patches_across", "tower_of"]

TOWERS: Mapping[str, Callable[[Any, int, Features], nn.Module]] = MappingProxyType(
    {
        "blip_2_vision_model": lambda vision, side_px, features: BlipVisionEncoder(vision),
        "clip_vision_model": clip_tower,
        "idefics3_vision": idefics3_tower,
        "internvl_vision": internvit_tower,
        "siglip_vision_model": siglip_tower,
        "smolvlm_vision": idefics3_tower,
    }
)
"""Transformers' vision model, the side of its images in pixels, and which tokens are read → images to tokens."""

WITH_CLASS_TOKEN = frozenset({"blip_2_vision_model", "clip_vision_model", "internvl_vision"})
"""Those that have a class token before the patches."""

_ANY_SIZE = ("idefics3_vision", "smolvlm_vision")


def tower_of(vision: Any, side_px: int, features: Features = WHOLE) -> nn.Module:
    """The tower of `vision`, a vision model of Transformers that `check_tower` lets pass."""
    return TOWERS[vision.config.model_type](vision, side_px, features)


def check_tower(path: Path, config: Any, size_px: tuple[int, int]) -> None:
    """CheckpointError unless `config`, a vision configuration in the file at `path`, is of a tower for such images."""
    if config.model_type not in TOWERS:
        raise CheckpointError(
            f"{path}: vision_config.model_type: expected one of {', '.join(TOWERS)}, found {show(config.model_type)}; "
            "it cannot be exported yet"
        )
    if size_px[0] != size_px[1]:
        raise CheckpointError(
            f"{path.parent}: expected an image processor that makes square images, found one of {size_px[0]} × "
            f"{size_px[1]} pixels; it cannot be exported yet"
        )
    if config.model_type not in _ANY_SIZE and _both(config.image_size) != size_px:
        raise CheckpointError(
            f"{path}: vision_config.image_size: expected {size_px[0]} × {size_px[1]} pixels, as the image processor "
            f"makes images, found {show(config.image_size)}; the two must agree"
        )
    patch_px = _both(config.patch_size)
    if patch_px[0] != patch_px[1] or not isinstance(patch_px[0], int) or not 1 <= patch_px[0] <= size_px[0]:
        raise CheckpointError(
            f"{path}: vision_config.patch_size: expected a number of pixels, at most {size_px[0]}, found "
            f"{show(config.patch_size)}"
        )


def patches_across(config: Any, side_px: int) -> int:
    """How many patches lie along a side of an image."""
    return side_px // int(_both(config.patch_size)[0])


def _both(sides: Any) -> tuple[Any, Any]:
    """Height and width where one number may stand for both."""
    return (sides[0], sides[1]) if isinstance(sides, list | tuple) else (sides, sides)
