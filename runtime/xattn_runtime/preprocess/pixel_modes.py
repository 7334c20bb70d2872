"""Pillow's pixel modes to RGB, or to RGBA where something is transparent: 16-bit, floating-point and palette modes too.

It knows pixels that are decoded, and not where they come from.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from xattn_runtime.errors import ImageError

if TYPE_CHECKING:
    from PIL import Image

__all__ = ["to_rgb"]

_BYTE = 256


def to_rgb(name: str, image: Image.Image) -> Image.Image:
    """The image in RGB, or RGBA where a pixel may be transparent; the same object where it is so already.

    16-bit values are scaled to 8 bits. ImageError, with `name`, where those of mode I or F have no scale.
    """
    if image.mode in ("RGB", "RGBA") and "transparency" not in image.info:
        return image
    if image.mode.startswith("I") or image.mode == "F":
        return _from_numbers(name, image)
    if image.mode == "La":
        return image.convert("LA").convert("RGBA")
    if image.mode == "RGB":
        return _keyed(image)
    return image.convert("RGBA" if image.has_transparency_data else "RGB")


def _keyed(image: Image.Image) -> Image.Image:
    """RGB with one colour that is transparent; Pillow states it with 16 bits where the file had as many."""
    key: Any = image.info["transparency"]
    if isinstance(key, tuple) and max(key) >= _BYTE:
        image = image.copy()
        image.info["transparency"] = tuple(value // _BYTE for value in key)
    return image.convert("RGBA")


def _from_numbers(name: str, image: Image.Image) -> Image.Image:
    """Modes I;16, I and F, scaled to 8 bit."""
    from PIL import Image

    exact = np.asarray(image)
    grey = Image.fromarray(_scaled(exact, _top(name, image.mode, exact)))
    key = image.info.get("transparency")
    if not isinstance(key, int):
        return grey.convert("RGB")
    keyed = grey.convert("RGBA")
    keyed.putalpha(Image.fromarray(np.where(exact == key, 0, 255).astype(np.uint8)))
    return keyed


def _scaled(values: NDArray[Any], top: float) -> NDArray[np.uint8]:
    """`values` from 0 to `top` as 0 to 255."""
    if values.dtype.kind != "u":
        return np.rint(values.astype(np.float64) * (255.0 / top)).astype(np.uint8)
    # Looking up takes a tenth of the memory of computing every pixel.
    table = np.rint(np.arange(2**16, dtype=np.float64) * (255.0 / top)).astype(np.uint8)
    scaled: NDArray[np.uint8] = table[values]
    return scaled


def _top(name: str, mode: str, values: NDArray[Any]) -> float:
    """The value that stands for white."""
    if mode.startswith("I;16"):
        return 65535.0
    low, high = float(values.min()), float(values.max())
    ranges = (1.0, 255.0, 65535.0) if mode == "F" else (255.0, 65535.0)
    # NaN compares false with everything and so ends in the error.
    top = next((top for top in ranges if low >= 0 and high <= top), 0.0)
    if not top:
        raise ImageError(
            f"{name}: expected values from 0 to 65535 in mode {mode}, found {low:g} to {high:g}; scale them"
        )
    return top
