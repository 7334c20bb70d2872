"""Pixels for the model, and the same preparation as data for the runtime."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

__all__ = ["image_preprocessing", "normalized"]

_MEAN = _STD = 0.5
_WHITE = [255, 255, 255]


def normalized(pixels: NDArray[np.uint8]) -> Tensor:
    """uint8 `[batch, height, width, 3]` to float32 `[batch, 3, height, width]` between -1 and 1."""
    batch = torch.from_numpy(np.array(pixels)).permute(0, 3, 1, 2)
    return (batch.float() / 255 - _MEAN) / _STD


def image_preprocessing(side_px: int) -> tuple[dict[str, Any], ...]:
    """The steps that prepare any image as `normalized` prepares those of training (`docs/bundle-format.md`)."""
    return (
        {"op": "flatten", "background": _WHITE},
        {"op": "pad_to_square", "background": _WHITE},
        {"op": "resize", "height_px": side_px, "width_px": side_px, "filter": "bicubic"},
        {"op": "rescale", "factor": 1 / 255},
        {"op": "normalize", "mean": [_MEAN] * 3, "std": [_STD] * 3},
    )
