"""Files that a command writes beside its answer: whole or not at all."""

from __future__ import annotations

import errno
import os
from pathlib import Path

from xattn_runtime.errors import OutputError

__all__ = ["check_writable", "write_text"]


def check_writable(path: Path) -> None:
    """Raises OutputError where `write_text` would, so that nobody works for a result that cannot be kept."""
    temporary = path.with_name(f".{path.name}.partial")
    try:
        if path.is_dir():
            raise IsADirectoryError(errno.EISDIR, "it is a folder")
        temporary.touch()
        temporary.unlink()
    except OSError as error:
        raise OutputError(f"{path}: expected a place to write to, found: {error.strerror}; name another") from error


def write_text(path: Path, text: str) -> None:
    """Write UTF-8 `text` under a temporary name beside `path`, then rename.

    Raises OutputError where it cannot be written; what was there stays.
    """
    temporary = path.with_name(f".{path.name}.partial")
    try:
        with temporary.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        raise OutputError(f"{path}: expected a place to write to, found: {error.strerror}; name another") from error
    finally:
        if temporary.exists():
            temporary.unlink()
