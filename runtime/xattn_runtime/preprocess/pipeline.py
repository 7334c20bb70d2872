"""Runs the manifest's image steps: an image to float32 `[3, height, width]`, pixel for pixel as in training.

It knows the steps and Pillow; it does not know where images come from (`image.py`), what sizes come out
(`geometry.py`) or where pixels go.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import product
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from xattn_runtime.errors import ImageError
from xattn_runtime.preprocess.geometry import MOST_OBLONG, Size, Window, centre_window
from xattn_runtime.preprocess.image import PIXEL_LIMIT, HeldImage, image_name, open_image
from xattn_runtime.preprocess.padding import resize_on_square
from xattn_runtime.preprocess.steps import (
    CenterCrop,
    Color,
    Filter,
    Flatten,
    ImageStep,
    Normalize,
    Pad,
    PadToSquare,
    PadZeros,
    Patches,
    Rescale,
    ResizeStep,
    ResizeToArea,
    Step,
    Tile,
    output_size_px,
)

if TYPE_CHECKING:
    from PIL import Image

    from xattn_runtime.preprocess.image import ImageInput

    ImageFunction = Callable[[Image.Image], Image.Image]

__all__ = ["PatchValues", "Pipeline", "Tiles"]

_CANVAS_PIXEL_LIMIT = 2 * PIXEL_LIMIT
# Of an image that is laid on a square larger than that: it is resized as if it were (padding.py), to a side that is
# at most this part of its own.
_LONGEST_SIDE_PX = 2**17
_LEAST_SHRINKING = 4
_UINT8_VALUES = 256
_OF_VALUES = Rescale | Normalize | PadZeros | Patches
_WIDEST_FILTER = 3


@dataclass(frozen=True)
class Tiles:
    """An image in tiles: float32 `[rows × columns + 1, 3, side, side]`, row by row, the whole image last.

    An image that was not cut is one tile, and `rows` and `columns` are 0.
    """

    pixels: NDArray[np.float32]
    rows: int
    columns: int


@dataclass(frozen=True)
class PatchValues:
    """An image in patches: float32 `[rows × columns, values]`, in the order of the step `Patches`."""

    values: NDArray[np.float32]
    rows: int
    columns: int


class Pipeline:
    """The compiled steps of one bundle; call it with an image.

    size_px: height and width of the result (of each tile or patch).
    tiled: whether an image gives tiles, as many as fit its shape.
    patch: the step that cuts an image into patches, as many as it measures, if there is one.
    """

    def __init__(self, steps: Sequence[Step]) -> None:
        """Compile `steps`; BundleError where their order cannot work."""
        self.size_px = output_size_px(steps)
        at = next(i for i, step in enumerate(steps) if isinstance(step, Rescale))
        self._tile = next((step for step in steps if isinstance(step, Tile)), None)
        self.patch = next((step for step in steps if isinstance(step, Patches)), None)
        self._steps = _compile([step for step in steps[:at] if not isinstance(step, _OF_VALUES)])
        self._values = _value_table([step for step in steps[at:] if isinstance(step, Rescale | Normalize)])

    @property
    def tiled(self) -> bool:
        return self._tile is not None

    def __call__(self, image: ImageInput | HeldImage) -> NDArray[np.float32]:
        """Pixel values, float32, contiguous: `[3, height, width]`, or `[tiles, 3, height, width]` where it is tiled.

        Or patches, as `patches` gives them. ImageError where the image cannot be used.
        """
        if self.patch is not None:
            return self.patches(image).values
        pixels = self.tiles(image).pixels
        return pixels if self.tiled else pixels[0]

    def patches(self, image: ImageInput | HeldImage) -> PatchValues:
        """The image as patches and how many there are along its sides; only where the steps end in patches."""
        if self.patch is None:
            raise TypeError("these steps cut no patches")
        opened = self._prepared(image)
        side, merge, frames = self.patch.side_px, self.patch.merge, self.patch.frames
        rows, columns = opened.height // side, opened.width // side
        pixels = np.asarray(opened).reshape(rows // merge, merge, side, columns // merge, merge, side, 3)
        # Looked up where they come to lie: a large image is in memory once as values.
        values = np.empty((rows // merge, columns // merge, merge, merge, 3, frames, side, side), np.float32)
        for channel, table in enumerate(self._values):
            band = pixels[..., channel].transpose(0, 3, 1, 4, 2, 5)
            values[:, :, :, :, channel] = table[band][:, :, :, :, None]
        return PatchValues(values.reshape(rows * columns, self.patch.width), rows, columns)

    def tiles(self, image: ImageInput | HeldImage) -> Tiles:
        """The image as tiles and how it was cut; one tile where the steps cut none."""
        opened = self._prepared(image)
        if self._tile is None:
            return Tiles(self._to_values([opened]), 0, 0)
        images, (rows, columns) = _cut(opened, self._tile)
        return Tiles(self._to_values(images), rows, columns)

    def seen(self, image: ImageInput | HeldImage) -> NDArray[np.uint8]:
        """The image before its values are scaled, as the model sees it: uint8 `[height, width, 3]` of `size_px`.

        ImageError where it cannot be used. Of one that is cut into tiles or patches it is the whole, before that.
        """
        opened = self._prepared(image)
        if self.tiled or self.patch is not None:
            return np.asarray(opened)
        canvas = np.zeros((*self.size_px, 3), np.uint8)
        canvas[: opened.height, : opened.width] = np.asarray(opened)
        return canvas

    def _prepared(self, image: ImageInput | HeldImage) -> Image.Image:
        """The image after all steps before its values are scaled."""
        opened = open_image(image)
        try:
            for step in self._steps:
                opened = step(opened)
        except ImageError as error:
            raise ImageError(f"{image_name(image)}: {error}") from error
        return opened

    def _to_values(self, images: Sequence[Image.Image]) -> NDArray[np.float32]:
        values = np.zeros((len(images), 3, *self.size_px), np.float32)
        for row, image in zip(values, images, strict=True):
            for channel, table, band in zip(row, self._values, np.moveaxis(np.asarray(image), 2, 0), strict=True):
                np.take(table, band, out=channel[: image.height, : image.width], mode="clip")
        return values


def _compile(steps: Sequence[ImageStep]) -> list[ImageFunction]:
    """The steps as functions.

    A resize and a crop right after it are one, as only the crop need be computed; and so are a square and a resize
    right after it, as the square need not be made.
    """
    functions: list[ImageFunction] = []
    waiting = list(reversed(steps))
    while waiting:
        step = waiting.pop()
        following = waiting[-1] if waiting else None
        if isinstance(step, ResizeStep) and isinstance(following, CenterCrop):
            functions.append(partial(_resize_and_crop, step=step, crop=following))
            waiting.pop()
        elif isinstance(step, PadToSquare) and isinstance(following, ResizeStep):
            waiting.pop()
            last = waiting[-1] if waiting else None
            crop = last if isinstance(last, CenterCrop) else None
            if crop is not None:
                waiting.pop()
            functions.append(partial(_pad_and_resize, pad=step, step=following, crop=crop))
        else:
            functions.append(partial(_apply, step=step))
    return functions


def _apply(image: Image.Image, step: ImageStep) -> Image.Image:
    match step:
        case Flatten():
            return _flatten(image, step.background)
        case PadToSquare():
            return _lay(image, step.size_of(_size(image)), step.background)
        case Pad():
            centred = step.position == "center"
            return _lay(image, (step.height_px, step.width_px), step.background, centred=centred)
        case CenterCrop():
            return _crop(image, step)
        case ResizeToArea() if max(image.size) > MOST_OBLONG * min(image.size):
            longer, shorter = max(image.size), min(image.size)
            raise ImageError(
                f"{image.width} × {image.height} pixels: expected a longer side of at most {MOST_OBLONG} times the "
                f"shorter one, found {longer / shorter:.4g} times; crop it"
            )
        case _:
            return _resize(image, step.size_of(_size(image)), step.filter)


def _value_table(steps: Sequence[Rescale | Normalize]) -> NDArray[np.float32]:
    """float32 `[3, 256]`: what each 8-bit value becomes in each channel. Looking it up equals computing it a pixel."""
    values = np.zeros((3, _UINT8_VALUES), np.float32)
    for step in steps:
        if isinstance(step, Rescale):
            values[:] = np.arange(_UINT8_VALUES, dtype=np.float64) * step.factor
        else:
            mean = np.asarray(step.mean, dtype=np.float32)[:, None]
            values = (values - mean) / np.asarray(step.std, dtype=np.float32)[:, None]
    return values


def _flatten(image: Image.Image, background: Color | None) -> Image.Image:
    from PIL import Image

    if image.mode == "RGB":
        return image  # no step writes into the image that it is given
    if background is None:
        return image.convert("RGB")
    canvas = Image.new("RGBA", image.size, (*background, 255))
    return Image.alpha_composite(canvas, image).convert("RGB")


def _lay(image: Image.Image, size: Size, background: Color, *, centred: bool = True) -> Image.Image:
    """On a canvas of `size`, in the middle (rounded up and left) or in the upper left corner."""
    from PIL import Image

    if size == _size(image):
        return image
    _check_pixels(image, size, "padded")
    (height, width) = size
    canvas = Image.new("RGB", (width, height), background)
    corner = ((width - image.width) // 2, (height - image.height) // 2) if centred else (0, 0)
    canvas.paste(image, corner)
    return canvas


def _resize(image: Image.Image, size: Size, name: Filter) -> Image.Image:
    _check_pixels(image, size, "resized")
    return image.resize((size[1], size[0]), _resampling(name))


def _pad_and_resize(image: Image.Image, pad: PadToSquare, step: ResizeStep, crop: CenterCrop | None) -> Image.Image:
    """The image on a square, resized, and the middle of that: where the square is too large to be made, without it."""
    side, _ = square = pad.size_of(_size(image))
    size = step.size_of(square)
    is_panorama = side * side > _CANVAS_PIXEL_LIMIT and side <= _LONGEST_SIDE_PX and image.height != image.width
    if is_panorama and max(size) * _LEAST_SHRINKING <= side:
        resized = resize_on_square(image, pad.background, size, step.filter)
        return resized if crop is None else _crop(resized, crop)
    laid = _lay(image, square, pad.background)
    return _resize(laid, size, step.filter) if crop is None else _resize_and_crop(laid, step, crop)


def _crop(image: Image.Image, crop: CenterCrop) -> Image.Image:
    window = centre_window(_size(image), (crop.height_px, crop.width_px))
    box = (window.left, window.top, window.left + window.width, window.top + window.height)
    return _on_black(image.crop(box), window, crop)


def _resize_and_crop(image: Image.Image, step: ResizeStep, crop: CenterCrop) -> Image.Image:
    """The middle of the resized image.

    A strip would grow to gigabytes before nearly all of it is cropped away, so of what is larger than an image may be
    only the part that stays is computed. Pillow takes the borders of that part as float32: a value may be 1 of 255 off,
    and with `nearest` be its neighbour's.
    """
    size = step.size_of(_size(image))
    if size[0] * size[1] <= PIXEL_LIMIT:
        return _crop(_resize(image, size, step.filter), crop)
    window = centre_window(size, (crop.height_px, crop.width_px))
    top, bottom, above, below = _source_span(image.height, size[0], window.top, window.height)
    left, right, before, after = _source_span(image.width, size[1], window.left, window.width)
    part = image.crop((left, top, right, bottom)).resize(
        (window.width, window.height), _resampling(step.filter), box=(before, above, after, below)
    )
    return _on_black(part, window, crop)


def _source_span(side: int, resized: int, start: int, length: int) -> tuple[int, int, float, float]:
    """Along one side: the whole pixels that a part of the resized image is made from, and that part within them."""
    scale = side / resized
    reach = _WIDEST_FILTER * max(scale, 1.0) + 1
    begin, end = start * scale, min((start + length) * scale, float(side))
    first, last = max(0, math.floor(begin - reach)), min(side, math.ceil(end + reach))
    return first, last, begin - first, end - first


def _on_black(part: Image.Image, window: Window, crop: CenterCrop) -> Image.Image:
    from PIL import Image

    if part.size == (crop.width_px, crop.height_px):
        return part
    canvas = Image.new("RGB", (crop.width_px, crop.height_px))
    canvas.paste(part, (window.left_on_canvas, window.top_on_canvas))
    return canvas


def _cut(image: Image.Image, step: Tile) -> tuple[list[Image.Image], Size]:
    """Tiles of an image that is whole tiles large, and rows and columns."""
    side = step.side_px
    rows, columns = image.height // side, image.width // side
    if rows * columns == 1:
        return [image], (0, 0)
    corners = product(range(0, rows * side, side), range(0, columns * side, side))
    tiles = [image.crop((left, top, left + side, top + side)) for top, left in corners]
    return [*tiles, image.resize((side, side), _resampling(step.filter))], (rows, columns)


def _size(image: Image.Image) -> Size:
    return image.height, image.width


def _check_pixels(image: Image.Image, size: Size, done: str) -> None:
    if size[0] * size[1] > _CANVAS_PIXEL_LIMIT:
        found = math.ceil(size[0] * size[1] / 10**5) / 10  # up, so that what is found is more than the most
        raise ImageError(
            f"{image.width} × {image.height} pixels: expected at most {_CANVAS_PIXEL_LIMIT // 10**6} megapixels once "
            f"{done}, found {found}; crop it or scale it down"
        )


def _resampling(name: Filter) -> Image.Resampling:
    from PIL.Image import Resampling

    return Resampling[name.upper()]
