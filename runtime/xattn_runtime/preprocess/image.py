"""Opening images that nobody vouches for: from a path, bytes, a Pillow image or an array, to RGB or RGBA.

It decides what is a usable image and how each pixel mode is read. It knows no model; `pipeline.py` continues from here.
"""

from __future__ import annotations

import importlib
import io
import os
import stat
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import numpy as np
from numpy.typing import NDArray

from xattn_runtime.errors import ImageError
from xattn_runtime.json_reader import one_line, show

if TYPE_CHECKING:
    from PIL import Image

    ImageInput = str | os.PathLike[str] | bytes | Image.Image | NDArray[Any]

__all__ = ["FILE_LIMIT_BYTES", "PIXEL_LIMIT", "open_image"]

FILE_LIMIT_BYTES = 256 * 2**20
PIXEL_LIMIT = 50_000_000
_READERS = {
    "PNG": ("PIL.PngImagePlugin", "PngImageFile"),
    "JPEG": ("PIL.JpegImagePlugin", "JpegImageFile"),
    "WEBP": ("PIL.WebPImagePlugin", "WebPImageFile"),
    "GIF": ("PIL.GifImagePlugin", "GifImageFile"),
    "BMP": ("PIL.BmpImagePlugin", "BmpImageFile"),
}
_ORIENTATION_TAG = 0x0112
_HAS_ALPHA = ("LA", "La", "PA", "RGBa")


def open_image(image: ImageInput) -> Image.Image:
    """The image in mode RGB, or RGBA where it has transparency, rotated upright as its EXIF orientation says.

    `image` is a path, the bytes of a file (PNG, JPEG, WEBP, GIF: first frame, BMP), a Pillow image, or a uint8 array
    `[height, width, 3]`. 16-bit values are scaled to 8 bit. Modes I and F carry no scale, so the smallest of 0–1
    (F only), 0–255 and 0–65535 that holds all values is taken.

    Raises ImageError, one line, for anything missing, empty, broken, of another format, above 256 MiB or 50 megapixels.
    """
    name, opened = _open(image)
    _check_size(name, opened.size)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            opened.load()
            return _to_rgb(name, _upright(opened))
    except ImageError:
        raise
    except Exception as error:  # Pillow's decoders raise a dozen kinds on damaged input
        _broken(name, error)


def _open(image: ImageInput) -> tuple[str, Image.Image]:
    from PIL import Image

    if isinstance(image, Image.Image):
        return "image given as an image object", image
    if isinstance(image, np.ndarray):
        return "image given as an array", _from_array(image)
    if isinstance(image, bytes | bytearray | memoryview):
        return "image given as bytes", _from_bytes("image given as bytes", bytes(image))
    if isinstance(image, str | os.PathLike):
        name = _printable(image)
        return name, _from_bytes(name, _read(name, image))
    raise ImageError(
        f"image: expected a path, bytes, a Pillow image or a uint8 array, found {show(type(image).__name__)}"
    )


def _from_array(array: NDArray[Any]) -> Image.Image:
    from PIL import Image

    if array.dtype != np.uint8 or array.ndim != 3 or array.shape[2] != 3:
        raise ImageError(
            "image given as an array: expected uint8 [height, width, 3], "
            f"found {array.dtype} {list(array.shape)}; convert it first"
        )
    _check_size("image given as an array", (array.shape[1], array.shape[0]))
    return Image.fromarray(np.ascontiguousarray(array))


def _printable(path: str | os.PathLike[str]) -> str:
    name = os.fspath(path)
    return name if name.isprintable() else show(name)


def _read(name: str, path: str | os.PathLike[str]) -> bytes:
    """The file's bytes, after checking what it is and how large."""
    try:
        status = Path(path).stat()
        if stat.S_ISDIR(status.st_mode):
            raise ImageError(f"{name}: expected an image, found a folder; name the files in it")
        if not stat.S_ISREG(status.st_mode):
            raise ImageError(f"{name}: expected a regular file, found a device or pipe; save the image to a file")
        if status.st_size > FILE_LIMIT_BYTES:
            _too_large(name, status.st_size)
        return Path(path).read_bytes()
    except FileNotFoundError:
        raise ImageError(f"{name}: expected an image, found no such file; check the path") from None
    except (OSError, ValueError) as error:
        raise ImageError(f"{name}: expected a readable image, found: {one_line(error)}; check the path") from error


def _from_bytes(name: str, data: bytes) -> Image.Image:
    """The image in `data`, header read and not yet decoded."""
    if not data:
        raise ImageError(f"{name}: expected an image, found an empty file; copy it again")
    if len(data) > FILE_LIMIT_BYTES:
        _too_large(name, len(data))
    image_format = _format_of(data)
    if image_format is None:
        raise ImageError(
            f"{name}: expected an image as {', '.join(_READERS)}, found a file that starts with {show(data[:8])}; "
            "convert it"
        )
    # Image.open would import half a dozen plugins to find this one, a tenth of the start-up time on a small machine.
    plugin, reader = _READERS[image_format]
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            image: Image.Image = getattr(importlib.import_module(plugin), reader)(io.BytesIO(data))
            return image
    except Exception as error:  # Pillow's decoders raise a dozen kinds on damaged input
        _broken(name, error)


def _format_of(data: bytes) -> str | None:
    if data.startswith(b"\x89PNG\r\n\x1a\n"):
        return "PNG"
    if data.startswith(b"\xff\xd8\xff"):
        return "JPEG"
    if data.startswith(b"RIFF") and data[8:12] == b"WEBP":
        return "WEBP"
    if data.startswith((b"GIF87a", b"GIF89a")):
        return "GIF"
    return "BMP" if data.startswith(b"BM") else None


def _check_size(name: str, size: tuple[int, int]) -> None:
    width, height = size
    if width < 1 or height < 1:
        raise ImageError(f"{name}: expected at least 1 × 1 pixels, found {width} × {height}")
    if width * height > PIXEL_LIMIT:
        raise ImageError(
            f"{name}: expected at most {PIXEL_LIMIT // 10**6} megapixels, found {width} × {height}; scale it down"
        )


def _upright(image: Image.Image) -> Image.Image:
    from PIL.Image import Transpose

    transpositions = {
        2: Transpose.FLIP_LEFT_RIGHT,
        3: Transpose.ROTATE_180,
        4: Transpose.FLIP_TOP_BOTTOM,
        5: Transpose.TRANSPOSE,
        6: Transpose.ROTATE_270,
        7: Transpose.TRANSVERSE,
        8: Transpose.ROTATE_90,
    }
    try:
        orientation = image.getexif().get(_ORIENTATION_TAG)
    except Exception:  # a damaged EXIF block says nothing about orientation, and the pixels are still good
        return image
    transposition = transpositions.get(orientation) if isinstance(orientation, int) else None
    return image if transposition is None else image.transpose(transposition)


def _to_rgb(name: str, image: Image.Image) -> Image.Image:
    if image.mode in ("RGB", "RGBA") and "transparency" not in image.info:
        return image
    if image.mode.startswith("I") or image.mode == "F":
        return _from_numbers(name, image)
    if image.mode in _HAS_ALPHA or "transparency" in image.info:
        return image.convert("RGBA")
    return image.convert("RGB")


def _from_numbers(name: str, image: Image.Image) -> Image.Image:
    """Modes I;16, I and F, scaled to 8 bit."""
    from PIL import Image

    values = np.asarray(image).astype(np.float64)
    if image.mode.startswith("I;16"):
        top = 65535.0
    else:
        low, high = float(values.min()), float(values.max())
        ranges = (1.0, 255.0, 65535.0) if image.mode == "F" else (255.0, 65535.0)
        # NaN compares false with everything and so ends in the error.
        top = next((top for top in ranges if low >= 0 and high <= top), 0.0)
        if not top:
            raise ImageError(
                f"{name}: expected values from 0 to 65535 in mode {image.mode}, found {low:g} to {high:g}; scale them"
            )
    grey = np.rint(values * (255.0 / top)).astype(np.uint8)
    return Image.fromarray(grey).convert("RGB")


def _too_large(name: str, size: int) -> NoReturn:
    raise ImageError(
        f"{name}: expected at most {FILE_LIMIT_BYTES // 2**20} MiB, found {size / 2**20:.0f} MiB; scale it down"
    )


def _broken(name: str, error: Exception) -> NoReturn:
    raise ImageError(
        f"{name}: expected a whole image, found a damaged one ({one_line(error)}); copy or save it again"
    ) from error
