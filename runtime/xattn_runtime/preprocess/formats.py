"""What kind of file some bytes are: an image that can be read, or something else, by the name that people know it by.

It looks at first bytes alone and decodes nothing.
"""

from __future__ import annotations

import re
from typing import Literal

from xattn_runtime.brought_files import placeholder_of
from xattn_runtime.json_reader import show

__all__ = ["FORMATS", "HEAD_BYTES", "ImageFormat", "described", "format_of", "kind_of", "remote_or_inline"]

ImageFormat = Literal["PNG", "JPEG", "WEBP", "GIF", "BMP"]
FORMATS: tuple[ImageFormat, ...] = ("PNG", "JPEG", "WEBP", "GIF", "BMP")
HEAD_BYTES = 1024
"""As many first bytes as `described` looks at."""

_CONVERT = "convert it to PNG or JPEG"
_DEVELOP = "develop it to PNG or JPEG"
_FRAME = "save a frame of it as PNG or JPEG"
_DRAW = "draw it as PNG"
_NO_IMAGE = "name an image"

# First bytes → what it is, and what to do.
_BY_BEGINNING: tuple[tuple[bytes, str, str], ...] = (
    (b"\0\0\0\x0cJXL \r\n\x87\n", "JPEG XL", _CONVERT),
    (b"\xff\x0a", "JPEG XL", _CONVERT),
    (b"\0\0\0\x0cjP  \r\n\x87\n", "JPEG 2000", _CONVERT),
    (b"\xff\x4f\xff\x51", "JPEG 2000", _CONVERT),
    (b"II*\0\x10\0\0\0CR", "a camera's RAW file (CR2)", _DEVELOP),
    (b"IIRO", "a camera's RAW file (ORF)", _DEVELOP),
    (b"IIRS", "a camera's RAW file (ORF)", _DEVELOP),
    (b"IIU\0", "a camera's RAW file (RW2)", _DEVELOP),
    (b"FUJIFILMCCD-RAW", "a camera's RAW file (RAF)", _DEVELOP),
    (b"FOVb", "a camera's RAW file (X3F)", _DEVELOP),
    (b"\0MRM", "a camera's RAW file (MRW)", _DEVELOP),
    (b"II*\0", "TIFF, or a camera's RAW file made like one", _CONVERT),
    (b"MM\0*", "TIFF, or a camera's RAW file made like one", _CONVERT),
    (b"II+\0", "TIFF", _CONVERT),
    (b"MM\0+", "TIFF", _CONVERT),
    (b"II\xbc\x01", "JPEG XR", _CONVERT),
    (b"%PDF-", "PDF", "save a page of it as PNG"),
    (b"%!PS", "PostScript", _DRAW),
    (b"\xc5\xd0\xd3\xc6", "PostScript", _DRAW),
    (b"8BPS", "Photoshop (PSD)", _CONVERT),
    (b"gimp xcf", "GIMP (XCF)", _CONVERT),
    (b"\0\0\1\0", "an icon (ICO)", _CONVERT),
    (b"icns", "an icon (ICNS)", _CONVERT),
    (b"qoif", "QOI", _CONVERT),
    (b"DDS ", "DDS", _CONVERT),
    (b"\x76\x2f\x31\x01", "OpenEXR", _CONVERT),
    (b"#?RADIANCE", "Radiance HDR", _CONVERT),
    (b"BPG\xfb", "BPG", _CONVERT),
    (b"SIMPLE  =", "FITS", _CONVERT),
    (b"AT&TFORM", "DjVu", "save a page of it as PNG"),
    (b"\x1aE\xdf\xa3", "a video (Matroska, WebM)", _FRAME),
    (b"\0\0\1\xba", "a video (MPEG)", _FRAME),
    (b"\0\0\1\xb3", "a video (MPEG)", _FRAME),
    (b"FLV\1", "a video (FLV)", _FRAME),
    (b"0&\xb2u\x8ef\xcf\x11", "a video (WMV)", _FRAME),
    (b"\x93NUMPY", "an array (.npy)", "load it with numpy.load and give the array"),
    (b"PK\3\4", "a ZIP archive, an .npz or a document", "take the image out of it"),
    (b"\x1f\x8b", "a gzip archive", "unpack it"),
    (b"7z\xbc\xaf\x27\x1c", "a 7-Zip archive", "unpack it"),
    (b"Rar!\x1a\x07", "a RAR archive", "unpack it"),
    (b"\xfd7zXZ\0", "an xz archive", "unpack it"),
    (b"(\xb5/\xfd", "a Zstandard archive", "unpack it"),
    (b"\0\x05\x16\x07", "notes of macOS on a file (AppleDouble)", "name the file itself"),
    (b"data:", "a data URI as text", "decode it to a file"),
    (b"http://", "a URL as text", "download what it names"),
    (b"https://", "a URL as text", "download what it names"),
    (b"[InternetShortcut]", "a shortcut to a web page", "download what it names"),
    (b"iVBORw0KGgo", "an image as base64 text", "decode it to a file"),
    (b"/9j/", "an image as base64 text", "decode it to a file"),
    (b"R0lGODlh", "an image as base64 text", "decode it to a file"),
    (b"UklGR", "an image as base64 text", "decode it to a file"),
)
# First bytes of sound in files that are not of RIFF → its format.
_SOUNDS: tuple[tuple[bytes, str], ...] = (
    (b"RIFX", "a big-endian WAV, RIFX"),
    (b"FFIR", "a big-endian WAV, FFIR"),
    (b"RF64", "WAV"),
    (b"BW64", "WAV"),
    (b"riff", "Wave64"),
    (b"fLaC", "FLAC"),
    (b"OggS", "Ogg, as Vorbis and Opus have it"),
    (b"ID3", "MP3"),
    (b"FORM", "AIFF"),
    (b".snd", "AU"),
    (b"caff", "CAF"),
    (b"#!AMR", "AMR"),
    (b"MThd", "MIDI"),
)
# Brands of the ISO base media format, at byte 8 behind `ftyp`.
_BY_BRAND: tuple[tuple[tuple[bytes, ...], str, str], ...] = (
    ((b"avif", b"avis"), "AVIF", _CONVERT),
    (
        (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"hevm", b"hevs", b"heif", b"mif1", b"mif2", b"msf1"),
        "HEIC (HEIF), as phones save photos",
        _CONVERT,
    ),
    ((b"crx ",), "a camera's RAW file (CR3)", _DEVELOP),
    ((b"jxl ",), "JPEG XL", _CONVERT),
    ((b"jp2 ", b"jpx ", b"jph "), "JPEG 2000", _CONVERT),
    ((b"M4A ", b"M4B "), "sound (M4A)", _NO_IMAGE),
)
_SAYING_LITTLE = (b"mif1", b"mif2", b"msf1")
_BY_FORM_TYPE: dict[bytes, tuple[str, str]] = {
    b"AVI ": ("a video (AVI)", _FRAME),
    b"WAVE": ("sound (WAV)", _NO_IMAGE),
}
_PORTABLE = re.compile(rb"P[1-7f][\s#]")
# Frames of MPEG audio begin with eleven bits that are set.
_SYNC, _SYNC_BITS = 0xFF, 0xE0
_SCHEME = re.compile(r"(?P<scheme>[A-Za-z][A-Za-z0-9+.-]+):/")
_BASE64 = re.compile(r"(iVBORw0KGgo|/9j/|R0lGODlh|UklGR|Qk[0-3])[A-Za-z0-9+/\s]{50}")


def format_of(data: bytes) -> ImageFormat | None:
    """The format of an image that can be read; None for anything else."""
    if data.startswith(b"\x89PNG\r\n\x1a\n"):
        return "PNG"
    if data.startswith(b"\xff\xd8\xff"):
        return "JPEG"
    if data.startswith(b"RIFF") and data[8:12] == b"WEBP":
        return "WEBP"
    if data.startswith((b"GIF87a", b"GIF89a")):
        return "GIF"
    return "BMP" if data.startswith(b"BM") else None


def described(head: bytes) -> str:
    """What a file that begins with `head`, and is no image that can be read, is, and what to do: 'TIFF; convert …'."""
    if (placeholder := placeholder_of(head)) is not None:
        return placeholder
    what, advice = _known(head) or (f"a file that starts with {show(head[:8])}", "convert it")
    return f"{what}; {advice}"


def kind_of(head: bytes) -> str | None:
    """What a file that begins with `head` is, an image or anything else that is known; None for what is not."""
    image_format = format_of(head)
    known = _known(head) if image_format is None else (f"an image ({image_format})", "")
    return None if known is None else known[0]


def _known(head: bytes) -> tuple[str, str] | None:
    """What a file is, and what to do where an image is expected; None for what is not known."""
    for beginning, what, advice in _BY_BEGINNING:
        if head.startswith(beginning):
            return what, advice
    for beginning, sound in _SOUNDS:
        if head.startswith(beginning):
            return f"sound ({sound})", _NO_IMAGE
    if head[4:8] == b"ftyp":
        return _of_brands(head)
    if head.startswith(b"RIFF") and head[8:12] in _BY_FORM_TYPE:
        return _BY_FORM_TYPE[head[8:12]]
    if head[4:8] in (b"moov", b"mdat", b"wide"):
        return "a video (QuickTime)", _FRAME
    if _PORTABLE.match(head):
        return "a portable pixmap (PPM, PGM, PBM, PNM)", _CONVERT
    if not head.strip(b"\0"):
        return f"a file that starts with {len(head)} zero bytes, as an interrupted copy leaves", "copy it again"
    if head[0] == _SYNC and head[1:2] and head[1] & _SYNC_BITS == _SYNC_BITS:
        return "sound (MP3 or AAC)", _NO_IMAGE
    return _of_text(head)


def _of_brands(head: bytes) -> tuple[str, str]:
    size = min(int.from_bytes(head[:4], "big"), len(head))
    # The major brand, and behind four bytes of a version those that it is compatible with.
    brands = [head[8:12], *(head[at : at + 4] for at in range(16, size, 4))]
    for brand in sorted(brands, key=_SAYING_LITTLE.__contains__):
        for known, what, advice in _BY_BRAND:
            if brand in known:
                return what, advice
    return "a video (MP4, QuickTime)", _FRAME


def _of_text(head: bytes) -> tuple[str, str] | None:
    start = head.removeprefix(b"\xef\xbb\xbf").lstrip()
    if start.startswith((b"<svg", b"<?xml", b"<!DOCTYPE svg", b"<!--")) and b"<svg" in head:
        return "a vector drawing (SVG)", _DRAW
    if start.startswith(b"<?xml"):
        return "an XML document, as a failed download leaves", "download it again"
    if start.startswith((b'{"', b"{\n", b"{ ", b"[{")):
        return "a JSON document, as a failed download leaves", "download it again"
    return None


def remote_or_inline(text: str) -> str | None:
    """What a text is that is no path, and what to do: a URL, a data URI, an image as base64; None for a path.

    A path may look like a URL, so ask only once there is no such file.
    """
    if text[:5].lower() == "data:":
        return f"a data URI of {len(text)} characters; decode it with base64.b64decode and give the bytes"
    if _BASE64.match(text):
        return f"base64 text of {len(text)} characters; decode it with base64.b64decode and give the bytes"
    if (match := _SCHEME.match(text)) is None:
        return None
    if match["scheme"].lower() == "file":
        return "a file URL; give the path alone"
    return "a URL; download it first, and name the file"
