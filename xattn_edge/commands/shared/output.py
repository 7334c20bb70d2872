"""Files that a command writes beside its answer: whole or not at all."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from xattn_runtime import files
from xattn_runtime.errors import OutputError

__all__ = ["check_writable", "write_text"]


def check_writable(path: Path) -> None:
    """Raises OutputError where `write_text` would, so that no work is done for a result that cannot be saved."""
    with _to(path):
        files.check_writable(path)


def write_text(path: Path, text: str) -> None:
    """Make `text` in UTF-8 all of the file `path`. Raises OutputError where it cannot be written."""
    with _to(path):
        files.atomic_write(path, text)


@contextmanager
def _to(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise OutputError(f"{path}: expected a place to write to, found: {error.strerror}; name another") from error
