"""Opening untrusted images: from a path, bytes, an open file, a Pillow image or an array, to RGB or RGBA.

It decides what is a usable image. It knows no model; `pipeline.py` continues from here.
"""

from __future__ import annotations

import importlib
import io
import math
import os
import stat
import threading
import warnings
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, NoReturn

import numpy as np
from numpy.typing import NDArray

from xattn_runtime.brought_files import placeholder_of
from xattn_runtime.errors import ImageError, UserError, problem
from xattn_runtime.json_reader import one_line, show
from xattn_runtime.preprocess.formats import FORMATS, HEAD_BYTES, ImageFormat, described, format_of, remote_or_inline
from xattn_runtime.preprocess.pixel_modes import to_rgb
from xattn_runtime.preprocess.png import correct_transparency, without_metadata

if TYPE_CHECKING:
    from PIL import Image

    ImageInput = str | os.PathLike[str] | bytes | bytearray | memoryview | BinaryIO | Image.Image | NDArray[Any]

__all__ = ["FILE_LIMIT_BYTES", "PIXEL_LIMIT", "HeldImage", "hold_image", "image_name", "open_image", "read_open_file"]

FILE_LIMIT_BYTES = 256 * 2**20
PIXEL_LIMIT = 50_000_000
_READERS: dict[ImageFormat, tuple[str, str]] = {
    "PNG": ("PIL.PngImagePlugin", "PngImageFile"),
    "JPEG": ("PIL.JpegImagePlugin", "JpegImageFile"),
    "WEBP": ("PIL.WebPImagePlugin", "WebPImageFile"),
    "GIF": ("PIL.GifImagePlugin", "GifImageFile"),
    "BMP": ("PIL.BmpImagePlugin", "BmpImageFile"),
}
_ORIENTATION_TAG = 0x0112
_LONGEST_NAME = 1024
_LONGEST_SHOWN = 75
_BYTES_OF_A_PIXEL = 4
_LOCKS = 64


class _Locks:
    """Locks for objects: one for all would make the threads of different images wait for each other."""

    def __init__(self) -> None:
        self._of_process: dict[int, tuple[threading.Lock, ...]] = {}

    def of(self, thing: object) -> threading.Lock:
        """The lock of an object; in a forked process another one, as the thread that holds this one is not there."""
        locks = self._of_process.get(os.getpid())
        if locks is None:
            locks = self._of_process.setdefault(os.getpid(), tuple(threading.Lock() for _ in range(_LOCKS)))
        return locks[id(thing) // 16 % _LOCKS]


# Pillow decodes an image when its pixels are first asked for, and two threads that ask at once spoil it for both; so it
# is with an open file.
_BY_ONE_THREAD = _Locks()


@dataclass(frozen=True)
class HeldImage:
    """An image as it was when it was given, whatever becomes of the buffer, the file or the object that it came in.

    name: of it in errors. content: the bytes of a file, or pixels in RGB or RGBA, upright.
    """

    name: str
    content: bytes | Image.Image


def open_image(image: ImageInput | HeldImage) -> Image.Image:
    """The image in mode RGB, or RGBA where it has transparency, rotated upright as its EXIF orientation says.

    `image` is a path, the bytes of a file (PNG, JPEG, WEBP, GIF: first frame, BMP), a file open for reading in binary
    (read from where it stands, and put back there), a Pillow image (the frame that it stands at), or a uint8 array
    `[height, width, 3]`. 16-bit values are scaled to 8 bit. Modes I and F carry no scale, so the smallest of 0–1
    (F only), 0–255 and 0–65535 that holds all values is taken.

    Raises ImageError, one line, for anything missing, empty, broken, of another format, above 256 MiB or 50 megapixels.
    """
    if isinstance(image, HeldImage) and not isinstance(image.content, bytes):
        return image.content
    with _alone(image):
        name, opened = _open(image)
        _check_size(name, opened.size)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                opened.load()
                return to_rgb(name, _upright(opened))
        except ImageError:
            raise
        except Exception as error:  # Pillow's decoders raise a dozen kinds on damaged input
            _broken(name, error)


def hold_image(image: ImageInput, most_bytes: int, *, decodes: bool = True) -> HeldImage | None:
    """The image as it is now, to be opened later; None for pixels that would take more than `most_bytes`.

    decodes: also a Pillow image that is not decoded yet; else None for it.
    Raises ImageError where it cannot be read.
    """
    name, data = image_name(image), _content(image)
    if data is not None:
        return HeldImage(name, data)
    sides = image.shape[:2] if isinstance(image, np.ndarray) else getattr(image, "size", ())
    if not isinstance(sides, tuple):  # no image, which opening it says
        sides = ()
    is_decoded = not getattr(image, "tile", None)
    if math.prod(sides) * _BYTES_OF_A_PIXEL > most_bytes or not (is_decoded or decodes):
        return None
    opened = open_image(image)
    return HeldImage(name, opened.copy() if opened is image else opened)


def image_name(image: ImageInput | HeldImage) -> str:
    """What errors call an image: its path, or how it was given."""
    from PIL import Image

    if isinstance(image, HeldImage):
        return image.name
    if isinstance(image, str | os.PathLike):
        name = os.fsdecode(image) or show("")
        name = name if len(name) <= _LONGEST_NAME else f"{name[: _LONGEST_NAME - 1]}…"
        return name if name.isprintable() else show(name)
    if isinstance(image, Image.Image):
        return "image given as an image object"
    if isinstance(image, np.ndarray):
        return "image given as an array"
    if isinstance(image, bytes | bytearray | memoryview):
        return "image given as bytes"
    return "image given as an open file" if hasattr(image, "read") else "image"


def _alone(image: ImageInput | HeldImage) -> AbstractContextManager[object]:
    """Of a Pillow image, that no other thread opens it meanwhile; all else is opened anew by each."""
    from PIL import Image

    return _BY_ONE_THREAD.of(image) if isinstance(image, Image.Image) else nullcontext()


def _open(image: ImageInput | HeldImage) -> tuple[str, Image.Image]:
    """The image, its header read, and its name."""
    from PIL import Image

    name, data = image_name(image), _content(image)
    if data is not None:
        return name, _from_bytes(name, data)
    if isinstance(image, Image.Image):
        return name, image
    if isinstance(image, np.ndarray):
        return name, _from_array(name, image)
    advice = "; give one image, or all to a method for several" if isinstance(image, list | tuple) else ""
    raise ImageError(
        f"image: expected a path, bytes, a Pillow image or a uint8 array, found {show(type(image).__name__)}{advice}"
    )


def _content(image: ImageInput | HeldImage) -> bytes | None:
    """The bytes of what is, or stands for, a file; None for what has pixels, and for what is no image."""
    from PIL import Image

    if isinstance(image, HeldImage):
        return image.content if isinstance(image.content, bytes) else None
    if isinstance(image, bytes | bytearray | memoryview):
        return bytes(image)
    if isinstance(image, str | os.PathLike):
        return _read(image_name(image), os.fsdecode(image))
    if isinstance(image, Image.Image):
        return _not_as_pillow_reads_it(image)
    return None if isinstance(image, np.ndarray) or not hasattr(image, "read") else read_open_file(image)


def _not_as_pillow_reads_it(image: Image.Image) -> bytes | None:
    """The file of a PNG that Pillow opened and has not decoded yet, where it would misread what is transparent."""
    stream, is_decoded = getattr(image, "fp", None), not getattr(image, "tile", None)
    if image.format != "PNG" or "transparency" not in image.info or getattr(image, "is_animated", False):
        return None
    if is_decoded or stream is None:
        return None
    with suppress(OSError, ValueError):  # a stream that cannot be read again
        at = stream.tell()
        stream.seek(0)
        data = stream.read(FILE_LIMIT_BYTES + 1)
        stream.seek(at)
        return data if isinstance(data, bytes) else None
    return None


def _from_array(name: str, array: NDArray[Any]) -> Image.Image:
    from PIL import Image

    if array.dtype != np.uint8 or array.ndim != 3 or array.shape[2] != 3:
        raise ImageError(
            f"{name}: expected uint8 [height, width, 3], found {array.dtype} {list(array.shape)}; convert it first"
        )
    _check_size(name, (array.shape[1], array.shape[0]))
    return Image.fromarray(np.ascontiguousarray(array))


def _read(name: str, path: str) -> bytes:
    """The file's bytes, after checking what it is and how large."""
    if not path:
        raise ImageError("image: expected a path, found an empty text; was a variable not set?")
    try:
        status = Path(path).stat()
        if stat.S_ISDIR(status.st_mode):
            raise ImageError(f"{name}: expected an image, found a folder; name the files in it")
        if not stat.S_ISREG(status.st_mode):
            raise ImageError(f"{name}: expected a regular file, found a device or pipe; save the image to a file")
        if status.st_size > FILE_LIMIT_BYTES:
            _too_large(name, status.st_size)
        return Path(path).read_bytes()
    except (OSError, ValueError) as error:
        if (found := remote_or_inline(path)) is not None:
            url = name if "://" in name else name.replace(":/", "://", 1)  # a Path keeps one of the two
            shown = url if len(url) <= _LONGEST_SHOWN else f"{url[:_LONGEST_SHOWN]}…"
            raise ImageError(f"{shown}: expected a path, bytes or an open file, found {found}") from None
        if isinstance(error, FileNotFoundError):
            raise ImageError(f"{name}: expected an image, found {_nothing_at(path)}") from None
        raise ImageError(f"{name}: expected a readable image, found: {problem(error)}") from error


def _nothing_at(path: str) -> str:
    with suppress(OSError, ValueError):
        target = str(Path(path).readlink())
        if (found := placeholder_of(os.fsencode(target))) is not None:
            return found
        return f"a link to {show(target)}, where nothing is; check the link"
    return "no such file; check the path"


def read_open_file(
    stream: BinaryIO, name: str = "image given as an open file", error_type: type[UserError] = ImageError
) -> bytes:
    """What an open file holds from where it stands, and at most one byte more than may be; it is put back there.

    Raises an error of `error_type`, which begins with `name`, where it gives no bytes.
    """
    try:
        with _BY_ONE_THREAD.of(stream):
            at = _place(stream)
            data = stream.read(FILE_LIMIT_BYTES + 1)
            if at is not None:
                stream.seek(at)
    except (OSError, ValueError, TypeError) as error:
        raise error_type(
            f"{name}: expected one that can be read in binary, found: {one_line(error)}; open it with 'rb'"
        ) from error
    if not isinstance(data, bytes | bytearray | memoryview):
        raise error_type(
            f"{name}: expected one that gives bytes, found one that gives {show(type(data).__name__)}; open it "
            "with 'rb'"
        )
    if at and not data:
        raise error_type(
            f"{name}: expected what it holds, found the end of the file at byte {at}; rewind it with seek(0)"
        )
    return bytes(data)


def _place(stream: BinaryIO) -> int | None:
    """Where an open file stands; None where it cannot be put back there."""
    try:
        return stream.tell() if stream.seekable() else None
    except (AttributeError, OSError, ValueError):
        return None


def _from_bytes(name: str, data: bytes) -> Image.Image:
    """The image in `data`, its header read."""
    if not data:
        raise ImageError(f"{name}: expected an image, found an empty file; copy it again")
    if len(data) > FILE_LIMIT_BYTES:
        _too_large(name, len(data))
    image_format = format_of(data)
    if image_format is None:
        raise ImageError(f"{name}: expected an image as {', '.join(FORMATS)}, found {described(data[:HEAD_BYTES])}")
    is_png = image_format == "PNG"
    # Image.open would import half a dozen plugins to find this one, a tenth of the start-up time on a small machine.
    plugin, reader = _READERS[image_format]
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            content = without_metadata(data) if is_png else data
            image: Image.Image = getattr(importlib.import_module(plugin), reader)(io.BytesIO(content))
            _check_size(name, image.size)
            return correct_transparency(image, content) if is_png else image
    except ImageError:
        raise
    except Exception as error:  # Pillow's decoders raise a dozen kinds on damaged input
        _broken(name, error)


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


def _too_large(name: str, size: int) -> NoReturn:
    raise ImageError(
        f"{name}: expected at most {FILE_LIMIT_BYTES // 2**20} MiB, found {size / 2**20:.0f} MiB; scale it down"
    )


def _broken(name: str, error: Exception) -> NoReturn:
    raise ImageError(
        f"{name}: expected a whole image, found a damaged one ({one_line(error)}); copy or save it again"
    ) from error
