"""What Pillow makes of an image on a square when it resizes the square, without making the square.

A panorama of 50 megapixels would be on a square of gigabytes, nearly all of it background. Pillow resizes along rows
and then along columns (`ImagingResampleInner` in Resample.c), in whole numbers. Along the side that the image fills it
is Pillow that does so here; along the other one only what the image reaches is summed. It knows pixels alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from xattn_runtime.preprocess.geometry import Size
from xattn_runtime.preprocess.steps import Color, Filter

if TYPE_CHECKING:
    from PIL import Image

__all__ = ["resize_on_square"]

_PRECISION_BITS = 32 - 8 - 2
_VALUES_AT_ONCE = 2**20
_REACH = {"bilinear": 1.0, "bicubic": 2.0, "lanczos": 3.0, "box": 0.5, "hamming": 1.0}


def resize_on_square(image: Image.Image, background: Color, size: Size, name: Filter) -> Image.Image:
    """The RGB image in the middle of a square of its longer side, all resized to `size`, bit for bit as Pillow does.

    The image is no square itself, and `size` at most a quarter of its longer side: to make little smaller one way and
    much the other, Pillow 13 turns to the columns first.
    """
    from PIL import Image
    from PIL.Image import Resampling

    if name == "nearest":
        return _nearest(image, background, size)
    (height, width), resampling = size, Resampling[name.upper()]
    side = max(image.size)
    row = np.asarray(Image.new("RGB", (side, 1), background).resize((width, 1), resampling))
    resized = _resized_columns(row, side, height, resampling)
    if image.width > image.height:
        rows = np.asarray(image.resize((width, image.height), resampling))
        places = _places(side, image.height, height, name)
        for place, values in zip(places, _sums(places, rows, row[0]), strict=True):
            resized[place.index] = values
        return Image.fromarray(resized)
    places = _places(side, image.width, width, name)
    columns = _sums(places, np.asarray(image).swapaxes(0, 1), np.asarray([background]))
    for place, values in zip(places, columns, strict=True):
        column = Image.fromarray(values[:, None]).resize((1, height), resampling)
        resized[:, place.index] = np.asarray(column)[:, 0]
    return Image.fromarray(resized)


def _resized_columns(row: NDArray[np.uint8], side: int, height: int, resampling: Image.Resampling) -> NDArray[np.uint8]:
    """`[height, width, 3]`: a square whose rows are all `row` `[1, width, 3]`, resized along its columns."""
    from PIL import Image

    resized = np.empty((height, *row.shape[1:]), np.uint8)
    for color in np.unique(row[0], axis=0):
        column = Image.new("RGB", (1, side), tuple(map(int, color))).resize((1, height), resampling)
        resized[:, (row[0] == color).all(axis=1)] = np.asarray(column)
    return resized


@dataclass(frozen=True)
class _Place:
    """A value along one axis of what comes out, and how much each of the image's counts in it.

    index: of it. first: the first of the image's that counts. weights: of these, whole. around: of the background.
    """

    index: int
    first: int
    weights: NDArray[np.int64]
    around: int


def _sums(places: Sequence[_Place], inside: NDArray[np.uint8], outside: NDArray[np.integer]) -> NDArray[np.uint8]:
    """`[places, lines, 3]`: what comes out of `inside` `[length, lines, 3]` with `outside` `[lines, 3]` around it."""
    length, lines, _ = inside.shape
    sums = np.empty((len(places), lines, 3), np.uint8)
    around = np.broadcast_to(outside.astype(np.int64), (lines, 3))
    at_once = max(1, _VALUES_AT_ONCE // length)
    for start in range(0, lines, at_once):
        part = slice(start, start + at_once)
        # float64 holds these sums exactly, and multiplies fast.
        values = np.ascontiguousarray(inside[:, part], np.float64).reshape(length, -1)
        for row, place in zip(sums, places, strict=True):
            seen = values[place.first : place.first + len(place.weights)]
            total = (place.weights.astype(np.float64) @ seen).astype(np.int64).reshape(-1, 3)
            total += place.around * around[part] + (1 << (_PRECISION_BITS - 1))
            row[part] = np.clip(total >> _PRECISION_BITS, 0, 255)
    return sums


def _places(side: int, length: int, resized: int, name: Filter) -> list[_Place]:
    """Those of `resized` places that an image of `length` in the middle of `side` reaches.

    As `precompute_coeffs` and `normalize_coeffs_8bpc` compute them.
    """
    start = (side - length) // 2
    scale = side / resized
    reach = _REACH[name] * scale
    places = []
    for index in range(resized):
        center = (index + 0.5) * scale
        begin, end = max(int(center - reach + 0.5), 0), min(int(center + reach + 0.5), side)
        if begin >= start + length or end <= start:
            continue
        weights = _filter((np.arange(begin, end, dtype=np.float64) - center + 0.5) * (1.0 / scale), name)
        weights /= np.cumsum(weights)[-1]
        whole = np.trunc(weights * (1 << _PRECISION_BITS) + np.copysign(0.5, weights)).astype(np.int64)
        inside = whole[max(start - begin, 0) : start + length - begin]
        places.append(_Place(index, max(begin - start, 0), inside, int(whole.sum() - inside.sum())))
    return places


def _filter(distances: NDArray[np.float64], name: Filter) -> NDArray[np.float64]:
    if name == "box":
        return ((distances > -0.5) & (distances <= 0.5)).astype(np.float64)
    x = np.abs(distances)
    if name == "bilinear":
        return np.where(x < 1, 1 - x, 0.0)
    if name == "bicubic":
        near, far = ((1.5 * x - 2.5) * x) * x + 1, (((x - 5) * x + 8) * x - 4) * -0.5
        return np.where(x < 1, near, np.where(x < 2, far, 0.0))
    if name == "hamming":
        return np.where(x < 1, np.sinc(x) * (0.54 + 0.46 * np.cos(np.pi * x)), 0.0)
    return np.where(x < 3, np.sinc(x) * np.sinc(x / 3), 0.0)


def _nearest(image: Image.Image, background: Color, size: Size) -> Image.Image:
    from PIL import Image

    side = max(image.size)
    places = []
    for resized, length in zip(size, (image.height, image.width), strict=True):
        scale = side / resized
        # Pillow adds up the steps, and so does this.
        place = np.cumsum([scale * 0.5, *[scale] * (resized - 1)]).astype(np.int64) - (side - length) // 2
        places.append((np.clip(place, 0, length - 1), (place >= 0) & (place < length)))
    (rows, row_inside), (columns, column_inside) = places
    inside = (row_inside[:, None] & column_inside)[..., None]
    return Image.fromarray(
        np.where(inside, np.asarray(image)[rows[:, None], columns], np.asarray(background, np.uint8))
    )
