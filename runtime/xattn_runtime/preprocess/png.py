"""What Pillow leaves to its caller in a PNG: metadata of any size, and transparent colours at the file's own depth.

It knows chunks (PNG specification, third edition, W3C 2025) and nothing of models.
"""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from PIL import Image

__all__ = ["PNG_SIGNATURE", "correct_transparency", "without_metadata"]

PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"

_TEXTS = (b"tEXt", b"zTXt", b"iTXt")
_METADATA = (*_TEXTS, b"iCCP")
# Deflate grows data 1,032 times at most: what is smaller than this stays within the 1 MiB that Pillow allows a text.
_SMALL_BYTES = 1000
# Texts in which programs write how the image is to be rotated; of these as much is read as any camera writes.
_ORIENTATION = (b"XML:com.adobe.xmp", b"Raw profile type exif")
_ORIENTATION_LIMIT_BYTES = 8 * 2**20
# Pillow keeps texts among its own notes on an image, so that a text of one of these names would pass for one of them.
_PILLOWS_OWN = (b"bbox", b"blend", b"default_image", b"disposal", b"interlace", b"transparency")
_TWO_BYTES = 16


class _Chunk(NamedTuple):
    kind: bytes
    start: int
    data_start: int
    end: int


def without_metadata(data: bytes) -> bytes:
    """The PNG without large texts and colour profile: Pillow takes a sound file that has them for damaged.

    What says how the image is to be rotated stays, and so does everything else, damage included.
    """
    kept: list[memoryview | bytes] = []
    view, at = memoryview(data), 0
    for chunk in _chunks(data):
        if chunk.kind in _METADATA and (replacement := _replacement(data, chunk)) is not None:
            kept += [view[at : chunk.start], replacement]
            at = chunk.end
    return b"".join([*kept, view[at:]]) if kept else data


def _replacement(data: bytes, chunk: _Chunk) -> bytes | None:
    """What stands in for a chunk of metadata; None where it can stay."""
    head = data[chunk.data_start : min(chunk.end, chunk.data_start + 80)]
    key = head.partition(b"\0")[0]
    if chunk.kind in _TEXTS and key in _PILLOWS_OWN:
        return b""
    if chunk.end - chunk.start <= _SMALL_BYTES:
        return None
    return _uncompressed(data, chunk, key) if key in _ORIENTATION else b""


def _uncompressed(data: bytes, chunk: _Chunk, key: bytes) -> bytes:
    """A text of `key`, no longer compressed, or nothing where it is too long or damaged."""
    content = data[chunk.data_start + len(key) + 1 : chunk.end - 4]
    if chunk.kind == b"zTXt":
        return _written(b"tEXt", key + b"\0" + _inflated(content[1:]))
    if chunk.kind == b"iTXt" and content[:1] == b"\1":
        language, _, rest = content[2:].partition(b"\0")
        translated, _, text = rest.partition(b"\0")
        return _written(b"iTXt", b"\0".join([key, b"\0", language, translated, _inflated(text)]))
    return data[chunk.start : chunk.end] if len(content) <= _ORIENTATION_LIMIT_BYTES else b""


def _inflated(data: bytes) -> bytes:
    inflater = zlib.decompressobj()
    try:
        text = inflater.decompress(data, _ORIENTATION_LIMIT_BYTES)
    except zlib.error:
        return b""
    return b"" if inflater.unconsumed_tail else text


def _written(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def _chunks(data: bytes) -> Iterator[_Chunk]:
    """The chunks in order, as far as they are whole."""
    at = len(PNG_SIGNATURE)
    while at + 12 <= len(data):
        end = at + 12 + int.from_bytes(data[at : at + 4], "big")
        if end > len(data):
            return
        yield _Chunk(data[at + 4 : at + 8], at, at + 8, end)
        at = end


def correct_transparency(image: Image.Image, data: bytes) -> Image.Image:
    """The image in `data`, not decoded yet, with the transparency that the file states.

    Pillow compares a transparent colour with values that it has scaled to 8 bits, and cuts some lists of alphas short.
    """
    if "transparency" not in image.info or (trns := _transparency(data)) is None:
        return image
    bits, content = trns
    if image.mode == "P":
        image.info["transparency"] = content
        return image
    # Of 16 bits only as many count as a value has (11.3.1.1 tRNS).
    values = [value & (2**bits - 1) for value in struct.unpack_from(f">{len(image.getbands())}H", content)]
    if image.mode == "RGB" and bits == _TWO_BYTES:
        return _keyed(image, data, values)
    if image.mode == "RGB":
        image.info["transparency"] = tuple(values)
    else:
        image.info["transparency"] = values[0] if bits == _TWO_BYTES else values[0] * (255 // (2**bits - 1))
    return image


def _transparency(data: bytes) -> tuple[int, bytes] | None:
    """The depth of a value and the content of the chunk `tRNS`, where there is one before the pixels."""
    bits = 0
    for chunk in _chunks(data):
        if chunk.kind == b"IHDR":
            bits = data[chunk.data_start + 8]
        elif chunk.kind == b"IDAT":
            break
        elif chunk.kind == b"tRNS":
            return bits, data[chunk.data_start : chunk.end - 4]
    return None


def _keyed(image: Image.Image, data: bytes, values: Sequence[int]) -> Image.Image:
    """An image of 16 bits a value, decoded, whose colour `values` is transparent."""
    from PIL import Image
    from PIL.PngImagePlugin import PngImageFile

    lower = PngImageFile(io.BytesIO(data))
    # Pillow keeps the byte that stands first in the file; told that the other one does, it keeps that.
    lower.tile = [tile._replace(args="RGB;16L") for tile in lower.tile]
    upper_bytes, lower_bytes = np.divmod(values, 256)
    is_transparent = (np.asarray(image) == upper_bytes).all(axis=2) & (np.asarray(lower) == lower_bytes).all(axis=2)
    keyed = image.copy()
    del keyed.info["transparency"]
    keyed.putalpha(Image.fromarray(np.where(is_transparent, 0, 255).astype(np.uint8)))
    return keyed
