"""Files that a command writes beside its answer: whole or not at all."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from xattn_runtime import files
from xattn_runtime.errors import OutputError

__all__ = ["check_not_input", "check_writable", "write_text"]


def check_not_input(path: Path, inputs: Iterable[Path]) -> None:
    """Raises OutputError where `path` is one of the files that the command reads."""
    for each in inputs:
        with suppress(OSError):  # one of the two is not there
            if path.samefile(each):
                raise OutputError(f"{path}: expected a file to write, found one that this command reads; name another")


def check_writable(path: Path) -> None:
    """Raises OutputError where `write_text` would, so that no work is done for a result that cannot be saved."""
    files.check_replaceable(path)
    if str(path) == "-":
        raise OutputError("-: expected the name of a file, found standard output, which takes the answer; name one")
    with _to(path):
        files.check_writable(path)


def write_text(path: Path, text: str) -> None:
    """Make `text` in UTF-8, which has `files.MARK` near its beginning, all of the file `path`.

    Raises OutputError where it cannot be written, and where `path` is a file of something else.
    """
    files.check_replaceable(path)
    with _to(path):
        files.atomic_write(path, text)


@contextmanager
def _to(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise OutputError(f"{path}: expected a place to write to, found: {error.strerror}; name another") from error
