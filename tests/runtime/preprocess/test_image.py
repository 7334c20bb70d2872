from __future__ import annotations

import io
import os
import struct
import warnings
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from xattn_runtime.errors import ImageError
from xattn_runtime.preprocess import image as image_module
from xattn_runtime.preprocess.image import open_image

COLOR = (200, 100, 40)


def _bytes(picture: Image.Image, image_format: str, **options: Any) -> bytes:
    stream = io.BytesIO()
    picture.save(stream, image_format, **options)
    return stream.getvalue()


def _plain(mode: str = "RGB") -> Image.Image:
    picture = Image.new("RGB", (6, 4), COLOR)
    return picture.quantize(4) if mode == "P" else picture.convert(mode)


@pytest.mark.parametrize("image_format", ["PNG", "JPEG", "WEBP", "GIF", "BMP"])
def test_formats(image_format: str, tmp_path: Path) -> None:
    data = _bytes(_plain(), image_format, **({"lossless": True} if image_format == "WEBP" else {}))
    path = tmp_path / "picture.of-any-name"
    path.write_bytes(data)
    for given_as in (path, str(path), data):
        picture = open_image(given_as)
        assert picture.mode in {"RGB", "RGBA"}
        assert picture.size == (6, 4)
        assert np.abs(np.asarray(picture)[..., :3].astype(int) - COLOR).max() <= 4


GREY = round(0.299 * 200 + 0.587 * 100 + 0.114 * 40)


def _numbers(mode: str, value: float) -> Image.Image:
    return Image.new(mode, (6, 4), value)


MODES: list[tuple[Image.Image, tuple[int, ...]]] = [
    (Image.new("1", (6, 4), 1), (255, 255, 255)),
    (_plain("L"), (GREY, GREY, GREY)),
    (Image.new("LA", (6, 4), (90, 30)), (90, 90, 90, 30)),
    (Image.new("RGBA", (6, 4), (90, 90, 90, 30)).convert("PA"), (90, 90, 90, 30)),
    (_plain("P"), COLOR),
    (_plain("RGB"), COLOR),
    (Image.new("RGBA", (6, 4), (*COLOR, 7)), (*COLOR, 7)),
    (Image.new("RGBX", (6, 4), (*COLOR, 7)), COLOR),
    (Image.new("CMYK", (6, 4), (255, 0, 0, 0)), (0, 255, 255)),
    (_plain("YCbCr"), COLOR),
    (_plain("HSV"), COLOR),
    (_numbers("I;16", 65535), (255, 255, 255)),
    (_numbers("I;16", 32768), (128, 128, 128)),
    (_numbers("I;16", 255), (1, 1, 1)),
    (_numbers("I", 200), (200, 200, 200)),
    (_numbers("I", 65535), (255, 255, 255)),
    (_numbers("F", 0.5), (128, 128, 128)),
    (_numbers("F", 200.0), (200, 200, 200)),
]


@pytest.mark.parametrize(("picture", "expected"), MODES, ids=[f"{p.mode}-{e[0]}" for p, e in MODES])
def test_modes(picture: Image.Image, expected: tuple[int, ...]) -> None:
    opened = open_image(picture)
    assert opened.mode == ("RGBA" if len(expected) == 4 else "RGB")
    pixel = opened.getpixel((3, 2))
    assert isinstance(pixel, tuple)
    assert np.abs(np.array(pixel) - expected).max() <= 4


def test_sixteen_bit_png_is_scaled_and_not_clipped() -> None:
    ramp = Image.fromarray(np.array([[0, 16384, 32768, 65535]], np.uint16))
    assert np.asarray(open_image(_bytes(ramp, "PNG")))[0, :, 0].tolist() == [0, 64, 128, 255]


def test_transparent_palette_and_transparent_colour_become_alpha() -> None:
    palette = _plain("P")
    data = _bytes(palette, "PNG", transparency=palette.getpixel((0, 0)))
    assert open_image(data).getpixel((0, 0)) == (*COLOR, 0)
    assert open_image(_bytes(_plain("RGB"), "PNG", transparency=COLOR)).getpixel((0, 0)) == (*COLOR, 0)


def test_first_frame_of_an_animation() -> None:
    frames = [Image.new("RGB", (6, 4), color) for color in ("red", "blue")]
    data = _bytes(frames[0], "GIF", save_all=True, append_images=frames[1:])
    assert open_image(data).convert("RGB").getpixel((0, 0)) == (255, 0, 0)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation(orientation: int) -> None:
    upright = np.zeros((2, 3, 3), np.uint8)
    upright[0, 0] = (255, 0, 0)
    upright[0, 2] = (0, 255, 0)
    stored = {
        1: upright,
        2: upright[:, ::-1],
        3: upright[::-1, ::-1],
        4: upright[::-1],
        5: upright.transpose(1, 0, 2),
        6: np.rot90(upright, 1),
        7: upright.transpose(1, 0, 2)[::-1, ::-1],
        8: np.rot90(upright, -1),
    }[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = _bytes(Image.fromarray(np.ascontiguousarray(stored)), "PNG", exif=exif)
    assert np.array_equal(np.asarray(open_image(data)), upright)


@pytest.mark.parametrize("exif", [b"Exif\0\0nonsense", b"Exif\0\0MM\0*\0\0\0\x08\xff\xff"])
def test_damaged_exif_is_no_obstacle(exif: bytes) -> None:
    assert open_image(_bytes(_plain(), "JPEG", exif=exif)).size == (6, 4)


def test_arrays() -> None:
    array = np.arange(24, dtype=np.uint8).reshape(2, 4, 3)
    assert np.array_equal(np.asarray(open_image(array)), array)
    assert np.array_equal(np.asarray(open_image(array[:, ::-1])), array[:, ::-1])


def _png_header(width: int, height: int) -> bytes:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


WHOLE_PNG = _bytes(Image.effect_noise((40, 40), 50).convert("RGB"), "PNG")
WHOLE_JPEG = _bytes(Image.effect_noise((40, 40), 50), "JPEG")

BAD: list[tuple[str, Any, str]] = [
    ("empty", b"", "found an empty file"),
    (
        "text",
        b"hello there",
        "expected an image as PNG, JPEG, WEBP, GIF, BMP, found a file that starts with b'hello",
    ),
    ("tiff", _bytes(_plain(), "TIFF"), "expected an image as PNG"),
    ("ppm", _bytes(_plain(), "PPM"), "expected an image as PNG"),
    ("truncated png", WHOLE_PNG[: len(WHOLE_PNG) // 2], "expected a whole image, found a damaged one"),
    ("truncated jpeg", WHOLE_JPEG[: len(WHOLE_JPEG) // 2], "expected a whole image, found a damaged one"),
    ("png signature only", b"\x89PNG\r\n\x1a\n", "expected a whole image, found a damaged one"),
    ("jpeg signature only", b"\xff\xd8\xff", "expected a whole image, found a damaged one"),
    ("60 megapixels", _png_header(10_000, 6_000), "expected at most 50 megapixels, found 10000 × 6000"),
    ("100 megapixels", _png_header(10_000, 10_000), "expected at most 50 megapixels, found 10000 × 10000"),
    ("bomb", _png_header(60_000, 60_000), "expected at most 50 megapixels, found 60000 × 60000"),
    ("zero size", _png_header(0, 5), "expected"),
    ("zero-sized image", Image.new("RGB", (0, 5)), "expected at least 1 × 1 pixels, found 0 × 5"),
    ("zero-sized array", np.zeros((0, 5, 3), np.uint8), "expected at least 1 × 1 pixels, found 5 × 0"),
    ("float array", np.zeros((5, 5, 3), np.float32), "expected uint8 [height, width, 3], found float32 [5, 5, 3]"),
    ("grey array", np.zeros((5, 5), np.uint8), "expected uint8 [height, width, 3], found uint8 [5, 5]"),
    ("negative", Image.new("I", (2, 2), -5), "expected values from 0 to 65535 in mode I, found -5 to -5"),
    ("nan", Image.new("F", (2, 2), float("nan")), "expected values from 0 to 65535 in mode F, found nan"),
    ("number", 7, "expected a path, bytes, a Pillow image or a uint8 array, found 'int'"),
    ("null in path", "a\0b", "expected a readable image"),
    ("no file", "no/such/file.png", "no/such/file.png: expected an image, found no such file"),
    ("line break", "no\nfile", "'no\\nfile': expected an image, found no such file"),
    ("folder", ".", "expected an image, found a folder"),
    ("device", os.devnull, "expected a regular file, found a device or pipe"),
]


@pytest.mark.parametrize(("given_image", "message"), [row[1:] for row in BAD], ids=[row[0] for row in BAD])
def test_what_is_no_picture(given_image: Any, message: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(ImageError) as caught:
            open_image(given_image)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_file_size_is_limited(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(image_module, "FILE_LIMIT_BYTES", 2**20)
    path = tmp_path / "large.png"
    path.write_bytes(WHOLE_PNG + bytes(2**20))
    for given_as in (path, path.read_bytes()):
        with pytest.raises(ImageError, match="expected at most 1 MiB, found 1 MiB; scale it down"):
            open_image(given_as)


@settings(max_examples=150, deadline=None)
@given(
    image_format=st.sampled_from(["PNG", "JPEG", "WEBP", "GIF", "BMP"]),
    edits=st.lists(st.tuples(st.integers(0, 10**6), st.integers(0, 255)), max_size=6),
    cut=st.integers(0, 400),
)
def test_damaged_files_give_a_picture_or_an_image_error(
    image_format: str, edits: list[tuple[int, int]], cut: int
) -> None:
    data = bytearray(_bytes(_plain(), image_format))
    for at, value in edits:
        data[at % len(data)] = value
    try:
        assert open_image(bytes(data[: max(len(data) - cut, 0)])).mode in {"RGB", "RGBA"}
    except ImageError as error:
        assert "\n" not in str(error)
