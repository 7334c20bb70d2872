"""Files that a command reads beside its images, and standard input, which `-` stands for."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from tempfile import TemporaryDirectory

from xattn_runtime.brought_files import decoded_text
from xattn_runtime.errors import UserError

__all__ = ["STANDARD_STREAM", "StandardInput", "read_lines"]

STANDARD_STREAM = "-"
"""In place of a file's name: standard input, or standard output."""

_LIMIT_BYTES = 4 * 2**20


class StandardInput:
    """Standard input of one command, which is read once, when something is named `-`."""

    def file(self, path: Path) -> Path | bytes:
        """`path`, or the bytes on standard input for `-`; UserError as `content`."""
        return self.content if str(path) == STANDARD_STREAM else path

    @contextmanager
    def as_files(self, paths: Sequence[Path]) -> Iterator[list[Path]]:
        """`paths`, with a file of what is on standard input, which is there within the block, for `-`."""
        if all(str(path) != STANDARD_STREAM for path in paths):
            yield list(paths)
            return
        with TemporaryDirectory() as folder:
            file = Path(folder, "standard input")
            file.write_bytes(self.content)
            yield [file if str(path) == STANDARD_STREAM else path for path in paths]

    def lines(self, path: Path, kind: str) -> list[str]:
        """The lines of a file, or of standard input for `-`; UserError as `read_lines` and `content`."""
        if str(path) == STANDARD_STREAM:
            return _lines("standard input", self.content, kind)
        return read_lines(path, kind)

    @cached_property
    def content(self) -> bytes:
        """All bytes; UserError where there are none, where a person would have to type them, and above 256 MiB."""
        from xattn_runtime.preprocess.image import FILE_LIMIT_BYTES

        if sys.stdin is None:
            raise UserError("standard input: expected data for -, found it closed; name a file")
        if sys.stdin.isatty():
            raise UserError("standard input: expected data for -, found a terminal; pipe a file into the command")
        content = sys.stdin.buffer.read(FILE_LIMIT_BYTES + 1)
        if not content:
            raise UserError("standard input: expected data for -, found nothing; pipe a file into the command")
        if len(content) > FILE_LIMIT_BYTES:
            raise UserError(f"standard input: expected at most {FILE_LIMIT_BYTES // 2**20} MiB, found more")
        return content


def read_lines(path: Path, kind: str) -> list[str]:
    """The lines of a text that are not blank; `kind` says what a line is.

    The text is in UTF-8, or as its byte-order mark says. Raises UserError for more than 4 MiB, and for other bytes.
    """
    with path.open("rb") as stream:
        return _lines(str(path), stream.read(_LIMIT_BYTES + 1), kind)


def _lines(name: str, content: bytes, kind: str) -> list[str]:
    if len(content) > _LIMIT_BYTES:
        raise UserError(f"{name}: expected at most {_LIMIT_BYTES} bytes of {kind}s, found more; name a list of {kind}s")
    try:
        lines = decoded_text(content).splitlines()
    except UnicodeDecodeError as error:
        article = "an" if kind[0] in "aeiou" else "a"
        raise UserError(
            f"{name}: expected text in UTF-8, {article} {kind} a line, found other bytes; save it as such"
        ) from error
    return [line.strip() for line in lines if line.strip()]
