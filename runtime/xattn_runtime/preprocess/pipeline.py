"""Runs the manifest's image steps: a picture to float32 `[3, height, width]`, pixel for pixel as in training.

It knows the steps and Pillow; it does not know where pictures come from (`image.py`) or where pixels go.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from xattn_runtime.errors import ImageError
from xattn_runtime.preprocess.image import open_image
from xattn_runtime.preprocess.steps import Color, Flatten, Normalize, PadToSquare, Rescale, Resize, Step, output_size_px

if TYPE_CHECKING:
    from PIL import Image

    from xattn_runtime.preprocess.image import ImageInput

    PictureStep = Callable[[Image.Image], Image.Image]

__all__ = ["Pipeline"]

_PADDED_PIXEL_LIMIT = 100_000_000
_UINT8_VALUES = 256


class Pipeline:
    """The compiled steps of one bundle; call it with a picture."""

    def __init__(self, steps: Sequence[Step]) -> None:
        """Compile `steps`; BundleError where their order cannot work."""
        self.size_px = output_size_px(steps)
        self._pictures = [_compile(step) for step in steps if isinstance(step, Flatten | PadToSquare | Resize)]
        self._values = _value_table([step for step in steps if isinstance(step, Rescale | Normalize)])

    def __call__(self, image: ImageInput) -> NDArray[np.float32]:
        """Pixel values, float32 `[3, height, width]`, contiguous; ImageError where the picture cannot be used."""
        picture = open_image(image)
        for step in self._pictures:
            picture = step(picture)
        return np.stack([self._values[c][channel] for c, channel in enumerate(np.moveaxis(np.asarray(picture), 2, 0))])


def _compile(step: Flatten | PadToSquare | Resize) -> PictureStep:
    if isinstance(step, Flatten):
        return lambda picture: _flatten(picture, step.background)
    if isinstance(step, PadToSquare):
        return lambda picture: _pad_to_square(picture, step.background)
    return lambda picture: _resize(picture, step)


def _value_table(steps: Sequence[Rescale | Normalize]) -> NDArray[np.float32]:
    """float32 `[3, 256]`: what each 8-bit value becomes in each channel. Looking it up equals computing it a pixel."""
    values = np.broadcast_to(np.arange(_UINT8_VALUES, dtype=np.float32), (3, _UINT8_VALUES))
    for step in steps:
        if isinstance(step, Rescale):
            values = values * np.float32(step.factor)
        else:
            mean = np.asarray(step.mean, dtype=np.float32)[:, None]
            values = (values - mean) / np.asarray(step.std, dtype=np.float32)[:, None]
    return np.ascontiguousarray(values)


def _flatten(picture: Image.Image, background: Color) -> Image.Image:
    from PIL import Image

    if picture.mode == "RGB":
        return picture
    canvas = Image.new("RGBA", picture.size, (*background, 255))
    return Image.alpha_composite(canvas, picture).convert("RGB")


def _pad_to_square(picture: Image.Image, background: Color) -> Image.Image:
    from PIL import Image

    width, height = picture.size
    side = max(width, height)
    if width == height:
        return picture
    if side * side > _PADDED_PIXEL_LIMIT:
        raise ImageError(
            f"picture of {width} × {height} pixels: expected at most {_PADDED_PIXEL_LIMIT // 10**6} megapixels once "
            f"padded to a square, found {side * side // 10**6}; crop it or scale it down"
        )
    canvas = Image.new("RGB", (side, side), background)
    canvas.paste(picture, ((side - width) // 2, (side - height) // 2))
    return canvas


def _resize(picture: Image.Image, step: Resize) -> Image.Image:
    from PIL.Image import Resampling

    filters = {
        "nearest": Resampling.NEAREST,
        "bilinear": Resampling.BILINEAR,
        "bicubic": Resampling.BICUBIC,
        "lanczos": Resampling.LANCZOS,
    }
    return picture.resize((step.width_px, step.height_px), filters[step.filter])
