"""A file of captions, one line of JSON each, which the next run resumes: opened for one process, read, and added to.

What is in the file already is never lost: a file that this command did not begin is refused, whatever is in it.
"""

from __future__ import annotations

import codecs
import errno
import json
import os
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from io import FileIO
from pathlib import Path

from xattn_edge.commands.shared.console import one_line
from xattn_runtime.brought_files import marked_encoding
from xattn_runtime.errors import OutputError

__all__ = ["CaptionFile", "caption_file"]

_BEGINNING = b'{"image": '
# What a file system says that cannot lock files, in place of that another process has locked this one.
_NO_LOCKS = frozenset({errno.ENOLCK, errno.ENOSYS, errno.EINVAL, errno.EOPNOTSUPP, errno.ENOTSUP, errno.EPERM})


@dataclass(frozen=True)
class CaptionFile:
    """A file of captions, open. done: names of the images that there are lines for."""

    path: Path
    done: frozenset[str]
    _stream: FileIO

    def add(self, line: bytes) -> None:
        """Add `line` and a line break, all of it or nothing."""
        _write(self._stream, line + b"\n")


@contextmanager
def caption_file(path: Path, made_by: str, warn: Callable[[str], None]) -> Iterator[CaptionFile]:
    """The file `path` with captions that are `made_by` one bundle with some options, new, empty or begun before.

    warn: receives what the user should know, such as that the file cannot be locked.
    Raises OutputError for a file that something else wrote, other settings wrote, or another process is writing.
    """
    from xattn_runtime.files import sync

    existed = os.path.lexists(path)
    with _opened(path) as stream:
        _lock(stream, path, warn)
        try:
            yield CaptionFile(path, _resumed(stream, path, made_by, warn), stream)
            sync(stream)
        finally:
            with suppress(OSError):
                if not existed and path.stat().st_size == 0:  # nothing came of it
                    path.unlink()


@contextmanager
def _opened(path: Path) -> Iterator[FileIO]:
    try:
        stream = path.open("a+b", buffering=0)
    except OSError as error:
        raise OutputError(
            f"{path}: expected a file that can be written, found: {one_line(error.strerror or str(error))}; "
            "name another"
        ) from error
    with stream:
        if not stat.S_ISREG(os.fstat(stream.fileno()).st_mode):
            raise OutputError(
                f"{path}: expected a regular file, which can be resumed, found a device or pipe; name a file, or - for "
                "standard output"
            )
        yield stream


def _lock(stream: FileIO, path: Path, warn: Callable[[str], None]) -> None:
    try:
        import fcntl
    except ImportError:  # another system
        return
    try:
        fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise OutputError(f"{path}: expected to be the one that writes it, found another; wait for it") from error
        reason = one_line(error.strerror or str(error))
        warn(f"{path}: cannot be locked where it lies ({reason}); let no other process write it")


def _resumed(stream: FileIO, path: Path, made_by: str, warn: Callable[[str], None]) -> frozenset[str]:
    """Names of the images that there are lines for, all of them ours; half a line at the end is cut off."""
    stream.seek(0)
    content = stream.readall()
    if marked_encoding(content) not in (None, "utf-8-sig"):
        raise OutputError(f"{path}: expected captions in UTF-8, found another encoding; save it as UTF-8")
    *lines, last = content.removeprefix(codecs.BOM_UTF8).split(b"\n")
    named = [_name(line, path, number, made_by) for number, line in enumerate(lines, 1) if line.strip()]
    if last and named and _is_half(last):
        stream.truncate(len(content) - len(last))
        warn(f"{path}: its last line was half written; its image is captioned again")
    elif last.strip():
        named.append(_name(last, path, len(lines) + 1, made_by))
        _write(stream, b"\n")  # it was corrected by hand, and saved without a line break
    return frozenset(named)


def _is_half(line: bytes) -> bool:
    """Whether `line` is the beginning of one of ours, as a killed run leaves it, and no whole JSON."""
    written = line.rstrip(b"\0")  # a power failure leaves zeros
    begins = written.startswith(_BEGINNING) or _BEGINNING.startswith(written)
    return begins and not written.rstrip().endswith(b"}")


def _name(line: bytes, path: Path, number: int, made_by: str) -> str:
    """The image of a line; OutputError where it is none of ours."""
    try:
        entry = json.loads(line)
        name, maker = entry["image"], entry["made_by"]
        if not isinstance(name, str) or not ("caption" in entry or "error" in entry):
            raise ValueError("no caption of an image")
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise OutputError(
            f"{path}: line {number}: expected a caption that this command wrote, found: {one_line(str(error))}; "
            "name another file"
        ) from error
    if maker != made_by:
        raise OutputError(
            f"{path}: line {number}: expected captions of this bundle with these options ({made_by}), found some "
            f"of {maker}; name another file"
        )
    return name


def _write(stream: FileIO, content: bytes) -> None:
    """Add `content`, all of it or nothing."""
    end = stream.seek(0, os.SEEK_END)
    try:
        if stream.write(content) != len(content):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    except OSError as error:
        with suppress(OSError):
            stream.truncate(end)
        raise OSError(error.errno, error.strerror, os.fspath(stream.name)) from error
