"""What is no image is named as what it is; what is one is read whatever its file holds besides."""

from __future__ import annotations

import base64
import io
import os
import struct
import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, PngImagePlugin

from xattn_runtime.errors import ImageError
from xattn_runtime.preprocess.image import open_image


def _brand(major: bytes, *compatible: bytes) -> bytes:
    content = b"ftyp" + major + b"\0\0\0\0" + b"".join(compatible)
    return struct.pack(">I", len(content) + 4) + content + b"\0\0\0\x20meta" + bytes(40)


def _saved(image_format: str, **options: Any) -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", (6, 4), (200, 100, 40)).save(stream, image_format, **options)
    return stream.getvalue()


def _zip() -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        archive.writestr("a.txt", "a")
    return stream.getvalue()


LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a2146\nsize 12345\n"
OTHERS = {
    "LFS": (LFS, "found a Git LFS pointer in place of the file; run `git lfs pull`"),
    "annex": (b"/annex/objects/MD5E-s12--ab.png\n", "found a git-annex pointer in place of the file; run `git annex"),
    "page": (b"\xef\xbb\xbf\n <!DOCTYPE html><html>404</html>", "found a web page (HTML) in place of the file"),
    "page without doctype": (b"<HTML><body>", "found a web page (HTML) in place of the file"),
    "xml": (b'<?xml version="1.0"?><Error><Code>AccessDenied</Code></Error>', "found an XML document"),
    "json": (b'{"message": "Not Found"}', "found a JSON document"),
    "svg": (b'<?xml version="1.0"?>\n<svg xmlns="http://www.w3.org/2000/svg"/>', "found a vector drawing (SVG)"),
    "plain svg": (b"<svg/>", "found a vector drawing (SVG); draw it"),
    "heic": (_brand(b"heic", b"mif1"), "found HEIC (HEIF), as phones save photos; convert it to PNG or JPEG"),
    "heif": (_brand(b"mif1", b"mif1", b"heic"), "found HEIC (HEIF)"),
    "avif": (_saved("AVIF"), "found AVIF; convert it to PNG or JPEG"),
    "avif in mif1": (_brand(b"mif1", b"mif1", b"avif", b"miaf"), "found AVIF; convert it"),
    "mp4": (_brand(b"isom", b"iso2", b"avc1"), "found a video (MP4, QuickTime); save a frame"),
    "cr3": (_brand(b"crx ", b"isom"), "found a camera's RAW file (CR3); develop it"),
    "mov": (b"\0\0\0\x08wide\0\0\0\0mdat", "found a video (QuickTime)"),
    "webm": (b"\x1aE\xdf\xa3" + bytes(40), "found a video (Matroska, WebM)"),
    "avi": (b"RIFF\0\0\0\0AVI LIST", "found a video (AVI)"),
    "wav": (b"RIFF\0\0\0\0WAVEfmt ", "found sound (WAV)"),
    "jpeg xl": (b"\xff\x0a" + bytes(30), "found JPEG XL; convert it"),
    "jpeg xl box": (b"\0\0\0\x0cJXL \r\n\x87\n", "found JPEG XL; convert it"),
    "jpeg 2000": (_saved("JPEG2000"), "found JPEG 2000; convert it"),
    "tiff": (_saved("TIFF"), "found TIFF, or a camera's RAW file made like one; convert it"),
    "cr2": (b"II*\0\x10\0\0\0CR\2\0", "found a camera's RAW file (CR2); develop it"),
    "raf": (b"FUJIFILMCCD-RAW 0201", "found a camera's RAW file (RAF)"),
    "pdf": (_saved("PDF"), "found PDF; save a page of it as PNG"),
    "ico": (_saved("ICO"), "found an icon (ICO)"),
    "ppm": (_saved("PPM"), "found a portable pixmap"),
    "zip": (_zip(), "found a ZIP archive"),
    "apple double": (b"\0\5\x16\7\0\2\0\0Mac OS X", "found notes of macOS on a file (AppleDouble)"),
    "zeros": (bytes(5000), "found a file that starts with 1024 zero bytes, as an interrupted copy leaves"),
    "mp3": (b"\xff\xfb\x90\0" + bytes(40), "found sound (MP3 or AAC); name an image"),
    "aiff": (b"FORM\0\0\1\0AIFFCOMM", "found sound (AIFF); name an image"),
    "url": (b"https://example.org/a.png\n", "found a URL as text; download what it names"),
    "shortcut": (b"[InternetShortcut]\r\nURL=https://example.org/", "found a shortcut to a web page; download what"),
    "base64": (base64.b64encode(_saved("PNG")), "found an image as base64 text; decode it"),
}  # fmt: skip


@pytest.mark.parametrize("name", OTHERS)
def test_what_is_no_image_is_named(name: str, tmp_path: Path) -> None:
    data, message = OTHERS[name]
    path = tmp_path / "photo.jpg"
    path.write_bytes(data)
    with pytest.raises(ImageError) as caught:
        open_image(path)
    assert str(caught.value).startswith(f"{path}: expected an image as PNG, JPEG, WEBP, GIF, BMP, {message}")
    assert len(str(caught.value)) < len(str(path)) + 250


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("https://example.org/a.png", "found a URL; download it first, and name the file"),
        ("s3://bucket/a.png", "found a URL; download it first"),
        ("file:///home/a.png", "found a file URL; give the path alone"),
        (f"data:image/png;base64,{'A' * 80_000}", "found a data URI of 80022 characters; decode it"),
        (base64.b64encode(_saved("JPEG")).decode() * 200, "base64.b64decode and give the bytes"),
    ],
)
def test_what_stands_for_an_image_in_a_text(text: str, message: str) -> None:
    for given in (text, Path(text)):
        with pytest.raises(ImageError) as caught:
            open_image(given)
        if isinstance(given, str) or "://" in text:
            assert message in str(caught.value)
        assert len(str(caught.value)) < 400


def test_an_empty_path_is_not_the_current_folder() -> None:
    with pytest.raises(ImageError, match=r"^image: expected a path, found an empty text; was a variable not set\?$"):
        open_image("")


def test_a_path_in_bytes_as_the_system_lists_it(tmp_path: Path) -> None:
    (tmp_path / "ü.png").write_bytes(_saved("PNG"))
    (entry,) = os.scandir(os.fsencode(tmp_path))
    assert open_image(entry).size == (6, 4)  # type: ignore[arg-type]
    (tmp_path / "ü.png").unlink()
    with pytest.raises(ImageError, match=r"ü\.png: expected an image, found no such file"):
        open_image(entry)  # type: ignore[arg-type]


@pytest.mark.parametrize("images", [["a.png"], ("a.png", "b.png")])
def test_several_in_place_of_one(images: Any) -> None:
    with pytest.raises(ImageError, match=r"found '(list|tuple)'; give one image, or all to a method for several"):
        open_image(images)


def test_a_link_that_points_nowhere_says_so(tmp_path: Path) -> None:
    (tmp_path / "annexed.png").symlink_to("../.git/annex/objects/aa/bb/SHA256E-s1--c.png")
    (tmp_path / "link.png").symlink_to("gone.png")
    with pytest.raises(ImageError, match=r"annexed.png: expected an image, found a git-annex pointer"):
        open_image(tmp_path / "annexed.png")
    with pytest.raises(ImageError, match=r"link.png: expected an image, found a link to 'gone.png', where nothing is"):
        open_image(tmp_path / "link.png")


def _chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def _with_chunks(before: bytes, after: bytes = b"") -> bytes:
    png = _saved("PNG")
    at = png.index(b"IDAT") - 4
    return png[:at] + before + png[at:-12] + after + png[-12:]


LARGE = b"workflow " * 2**18
METADATA = {
    "zTXt": _chunk(b"zTXt", b"workflow\0\0" + zlib.compress(LARGE)),
    "iTXt": _chunk(b"iTXt", b"prompt\0\1\0\0\0" + zlib.compress(LARGE)),
    "tEXt": _chunk(b"tEXt", b"prompt\0" + LARGE) * 29,
    "iCCP": _chunk(b"iCCP", b"profile\0\0" + zlib.compress(LARGE)),
    "eXIf": _chunk(b"eXIf", b"MM\0*\0\0\0\x08\0\0" + LARGE),
    "names of Pillow's": _chunk(b"tEXt", b"transparency\0no") + _chunk(b"tEXt", b"bbox\0no"),
}


@pytest.mark.parametrize("name", METADATA)
def test_large_metadata_is_no_damage(name: str) -> None:
    for data in (_with_chunks(METADATA[name]), _with_chunks(b"", METADATA[name])):
        assert np.array_equal(np.asarray(open_image(data)), np.asarray(open_image(_saved("PNG"))))


@pytest.mark.parametrize("is_compressed", [False, True])
def test_large_metadata_still_says_how_an_image_is_turned(is_compressed: bool) -> None:
    xmp = b'<x:xmpmeta><tiff:Orientation="6"/>' + LARGE
    info = PngImagePlugin.PngInfo()
    info.add_itxt("XML:com.adobe.xmp", xmp, zip=is_compressed)
    stream = io.BytesIO()
    Image.new("RGB", (6, 4)).save(stream, "PNG", pnginfo=info)
    assert open_image(stream.getvalue()).size == (4, 6)


def test_a_bomb_in_the_metadata_takes_no_memory() -> None:
    deflater = zlib.compressobj()
    bomb = b"".join(deflater.compress(bytes(2**20)) for _ in range(80)) + deflater.flush()
    for key in (b"workflow", b"XML:com.adobe.xmp"):
        assert open_image(_with_chunks(_chunk(b"iTXt", key + b"\0\1\0\0\0" + bomb))).size == (6, 4)


def test_damage_beside_large_metadata_is_found() -> None:
    data = bytearray(_with_chunks(METADATA["zTXt"]))
    with pytest.raises(ImageError, match="expected a whole image, found a damaged one"):
        open_image(bytes(data[:-30]))
    data[data.index(b"IDAT") + 6] ^= 255
    with pytest.raises(ImageError, match="expected a whole image, found a damaged one"):
        open_image(bytes(data))


@pytest.mark.parametrize("image_format", ["JPEG", "WEBP"])
def test_long_exif(image_format: str) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    exif[0x9286] = "c" * (60_000 if image_format == "JPEG" else 3 * 2**20)
    assert open_image(_saved(image_format, exif=exif)).size == (4, 6)


def test_an_open_file_is_read_from_where_it_stands_and_left_there(tmp_path: Path) -> None:
    png = _saved("PNG")
    (tmp_path / "image.png").write_bytes(b"head" + png)
    with (tmp_path / "image.png").open("rb") as stream:
        stream.seek(4)
        for _ in range(2):
            assert open_image(stream).size == (6, 4)
        assert (stream.tell(), stream.closed) == (4, False)
    memory = io.BytesIO(png)
    assert open_image(memory).size == (6, 4)
    memory.seek(0, 2)
    with pytest.raises(ImageError, match=rf"found the end of the file at byte {len(png)}; rewind it with seek\(0\)"):
        open_image(memory)
    for buffer in (bytearray(png), memoryview(png)):
        assert open_image(buffer).size == (6, 4)
    with (tmp_path / "image.png").open() as text, pytest.raises(ImageError, match="open it with 'rb'"):
        open_image(text)  # type: ignore[arg-type]
    with pytest.raises(ImageError, match="image given as an open file: expected an image, found an empty file"):
        open_image(io.BytesIO())
