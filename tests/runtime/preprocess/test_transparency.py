"""Transparency in every form in which a file or Pillow states it.

Right is what the PNG specification says, or what the same image is when it is saved and opened.
"""

from __future__ import annotations

import io
import struct
import zlib
from typing import Any

import numpy as np
import pytest
from PIL import Image

from xattn_runtime.errors import ImageError
from xattn_runtime.preprocess.image import open_image
from xattn_runtime.preprocess.pipeline import Pipeline
from xattn_runtime.preprocess.steps import Flatten, Rescale, Resize


def _chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def _png(width: int, bits: int, kind: int, row: bytes, *chunks: bytes) -> bytes:
    """A PNG of one row of pixels."""
    header = struct.pack(">IIBBBBB", width, 1, bits, kind, 0, 0, 0)
    body = [_chunk(b"IHDR", header), *chunks, _chunk(b"IDAT", zlib.compress(b"\0" + row)), _chunk(b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(body)


def _trns(*values: int) -> bytes:
    return _chunk(b"tRNS", struct.pack(f">{len(values)}H", *values))


PALETTE = _chunk(b"PLTE", bytes(range(9)))
KEYED: dict[str, tuple[bytes, list[tuple[int, ...]]]] = {
    "grey 1": (_png(2, 1, 0, b"\x80", _trns(1)), [(255, 255, 255, 0), (0, 0, 0, 255)]),
    "grey 2": (_png(2, 2, 0, b"\x90", _trns(2)), [(170, 170, 170, 0), (85, 85, 85, 255)]),
    "grey 4": (_png(2, 4, 0, b"\x7f", _trns(7)), [(119, 119, 119, 0), (255, 255, 255, 255)]),
    "grey 8": (_png(2, 8, 0, b"\xc8\x07", _trns(200)), [(200, 200, 200, 0), (7, 7, 7, 255)]),
    "grey 8, more bits": (_png(2, 8, 0, b"\xc8\x07", _trns(0xAB07)), [(200, 200, 200, 255), (7, 7, 7, 0)]),
    "grey 16": (
        _png(3, 16, 0, struct.pack(">3H", 1000, 1001, 65535), _trns(1000)),
        [(4, 4, 4, 0), (4, 4, 4, 255), (255, 255, 255, 255)],
    ),
    "colour 8": (_png(2, 8, 2, bytes(range(6)), _trns(0, 1, 2)), [(0, 1, 2, 0), (3, 4, 5, 255)]),
    "colour 8, more bits": (_png(2, 8, 2, bytes(range(6)), _trns(256, 257, 2)), [(0, 1, 2, 0), (3, 4, 5, 255)]),
    "colour 16": (
        _png(3, 16, 2, struct.pack(">9H", 1000, 2000, 3000, 1001, 2000, 3000, 9, 9, 9), _trns(1000, 2000, 3000)),
        [(3, 7, 11, 0), (3, 7, 11, 255), (0, 0, 0, 255)],
    ),
    "palette": (
        _png(3, 8, 3, b"\0\1\2", PALETTE, _chunk(b"tRNS", b"\xff\0\x0a")),
        [(0, 1, 2, 255), (3, 4, 5, 0), (6, 7, 8, 10)],
    ),
    "palette 2": (
        _png(3, 2, 3, b"\x18", PALETTE, _chunk(b"tRNS", b"\xff\x80")),
        [(0, 1, 2, 255), (3, 4, 5, 128), (6, 7, 8, 255)],
    ),
}


@pytest.mark.parametrize("form", ["file", "Pillow, not decoded", "twice"])
@pytest.mark.parametrize("name", KEYED)
def test_a_png_is_transparent_where_it_says_so(name: str, form: str) -> None:
    data, expected = KEYED[name]
    image: Any = data if form == "file" else Image.open(io.BytesIO(data))
    if form == "twice":
        open_image(image)
    opened = open_image(image)
    assert opened.mode == "RGBA"
    assert [tuple(pixel) for pixel in np.asarray(opened)[0]] == [tuple(pixel) for pixel in expected]


def test_a_damaged_transparent_colour_is_a_damaged_image() -> None:
    with pytest.raises(ImageError, match="expected a whole image, found a damaged one"):
        open_image(_png(2, 8, 2, bytes(6), _chunk(b"tRNS", b"\0")))


def _soft() -> Image.Image:
    """A blue square with a soft edge on nothing."""
    alpha = np.clip(255 - 14 * np.abs(np.arange(40) - 20), 0, 255)
    pixels = np.zeros((40, 40, 4), np.uint8)
    pixels[..., 2] = 255
    pixels[..., 3] = np.minimum(alpha[:, None], alpha[None])
    return Image.fromarray(pixels)


def _premultiplied_grey() -> Image.Image:
    return Image.fromarray(np.asarray(_soft().convert("LA"))).convert("La")


def _numbers(mode: str) -> Image.Image:
    image = Image.fromarray(np.array([[0, 1000, 40000, 65535]], np.uint16)).convert(mode)
    image.info["transparency"] = 1000
    return image


IN_MEMORY = {
    "palette with alpha": _soft().quantize(16),
    "PA": _soft().convert("PA"),
    "LA": _soft().convert("LA"),
    "RGBa": _soft().convert("RGBa"),
}


@pytest.mark.parametrize("name", IN_MEMORY)
def test_an_image_in_memory_is_what_it_is_saved_and_opened(name: str) -> None:
    image = IN_MEMORY[name]
    stream = io.BytesIO()
    (image.convert("RGBA") if image.mode in {"PA", "RGBa"} else image).save(stream, "PNG")
    steps: list[Any] = [Flatten((255, 255, 255)), Resize(40, 40, "nearest"), Rescale(1.0)]
    in_memory, saved = Pipeline(steps)(image), Pipeline(steps)(stream.getvalue())
    assert in_memory[0, 0, 0] > 200 > 50 > in_memory[0, 20, 20]
    assert np.abs(in_memory - saved).max() <= 2


def test_premultiplied_grey_is_divided_again() -> None:
    image = Image.new("LA", (2, 1), (200, 255))
    image.putpixel((1, 0), (200, 100))
    opened = open_image(image.convert("La"))
    assert opened.getpixel((0, 0)) == (200, 200, 200, 255)
    red, green, blue, alpha = opened.getpixel((1, 0))
    assert red == green == blue
    assert (abs(red - 200) <= 2, alpha) == (True, 100)


@pytest.mark.parametrize("mode", ["I;16", "I"])
def test_a_transparent_number_of_16_bits(mode: str) -> None:
    opened = open_image(_numbers(mode))
    assert [tuple(pixel) for pixel in np.asarray(opened)[0]] == [
        (0, 0, 0, 255),
        (4, 4, 4, 0),
        (156, 156, 156, 255),
        (255, 255, 255, 255),
    ]


@pytest.mark.parametrize("image_format", ["GIF", "TIFF"])
def test_a_frame_is_what_it_is_saved_as_a_png(image_format: str) -> None:
    frames = [Image.new("RGBA", (40, 40)) for _ in range(3)]
    for place, frame in enumerate(frames):
        frame.paste((255, 80 * place, 0, 255), (4 * place, 6, 4 * place + 20, 30))
    stream = io.BytesIO()
    frames[0].save(stream, image_format, save_all=True, append_images=frames[1:])
    animation = Image.open(io.BytesIO(stream.getvalue()))
    for place in range(3):
        animation.seek(place)
        saved = io.BytesIO()
        animation.convert("RGBA").save(saved, "PNG")
        opened, expected = (open_image(one).convert("RGBA") for one in (animation, saved.getvalue()))
        assert np.array_equal(np.asarray(opened), np.asarray(expected))
        assert len(np.unique(np.asarray(opened)[..., 3])) > 1
