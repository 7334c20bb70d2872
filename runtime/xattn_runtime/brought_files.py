"""Files as people bring them: text with a byte-order mark, files that other systems leave, names with numbers in them,
pointers in place of files.

It knows names and bytes, and not what they are for.
"""

from __future__ import annotations

import codecs
import re
from pathlib import Path, PurePath

__all__ = [
    "NaturalKey",
    "decoded_text",
    "is_folder",
    "is_system_file",
    "marked_encoding",
    "natural_key",
    "placeholder_of",
]

_Pieces = tuple[str | int, ...]
NaturalKey = tuple[tuple[tuple[_Pieces, _Pieces], ...], str]

# UTF-32 before UTF-16, whose mark its own begins with.
_MARKS = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
_MARK = "\ufeff"
_SYSTEM_NAMES = frozenset(
    {".ds_store", ".directory", "desktop.ini", "ehthumbs.db", "thumbs.db", "__macosx", "@eadir", "#recycle",
     "$recycle.bin", "system volume information", "lost+found"}
)  # fmt: skip
_APPLE_DOUBLE = "._"
_ANNEX = re.compile(rb"((\.\./)*\.git)?/annex/objects/")
_PAGE = re.compile(rb"(\xef\xbb\xbf)?\s*<(!doctype html|html|head|body|title)", re.IGNORECASE)


def marked_encoding(content: bytes) -> str | None:
    """The encoding that the byte-order mark at the beginning of `content` names; None where there is no mark."""
    return next((name for mark, name in _MARKS if content.startswith(mark)), None)


def decoded_text(content: bytes) -> str:
    """`content` as text: UTF-8, or what its byte-order mark says; the mark is left out, before every line.

    Raises UnicodeDecodeError for other bytes, and for NUL, which text in UTF-16 without a mark holds.
    """
    encoding = marked_encoding(content) or "utf-8"
    text = content.decode(encoding)
    if (place := text.find("\0")) >= 0:
        raise UnicodeDecodeError(encoding, content, place, place + 1, "NUL, as in a file that is no text")
    return re.sub(f"^{_MARK}+", "", text, flags=re.MULTILINE)


def is_system_file(name: str) -> bool:
    """Whether a system keeps a file or folder of this name beside others by itself: `._x`, `.DS_Store`, `Thumbs.db`."""
    return name.lower() in _SYSTEM_NAMES or name.startswith(_APPLE_DOUBLE)


def is_folder(path: Path) -> bool:
    """Whether `path` is a folder; False where that cannot be seen, which who opens it says better."""
    try:
        return path.is_dir()
    except (OSError, ValueError):
        return False


def placeholder_of(head: bytes) -> str | None:
    """What a file that begins with `head` is in place of another, and what to do; None where it is none of these.

    A checkout without Git LFS or git-annex has pointers where the files should be, and a download that failed a page.
    """
    if head.startswith(b"version https://git-lfs.github.com/spec/"):
        return "a Git LFS pointer in place of the file; run `git lfs pull` where it was cloned"
    if _ANNEX.match(head):
        return "a git-annex pointer in place of the file; run `git annex get` where it was cloned"
    if _PAGE.match(head):
        return "a web page (HTML) in place of the file, as a failed download leaves; download it again"
    return None


def natural_key(path: PurePath) -> NaturalKey:
    """To sort paths as people count: `frame_2` before `frame_10`."""
    # The suffix apart, so that `a.png` comes before `a2.png`.
    parts = tuple((_pieces(PurePath(part).stem), _pieces(PurePath(part).suffix)) for part in path.parts)
    return parts, str(path)


def _pieces(text: str) -> _Pieces:
    """Text and numbers in turns, so that no number is compared with a text."""
    return tuple(int(piece) if number % 2 else piece for number, piece in enumerate(re.split(r"([0-9]+)", text)))
