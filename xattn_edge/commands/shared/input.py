"""Files that a command reads beside its images."""

from __future__ import annotations

from pathlib import Path

from xattn_runtime.errors import UserError

__all__ = ["read_lines"]

_LIMIT_BYTES = 4 * 2**20


def read_lines(path: Path, kind: str) -> list[str]:
    """The lines of a file of UTF-8 that are not blank; `kind` says what a line is.

    Raises UserError for more than 4 MiB, and for other bytes.
    """
    if (size := path.stat().st_size) > _LIMIT_BYTES:
        raise UserError(
            f"{path}: expected at most {_LIMIT_BYTES} bytes of {kind}s, found {size}; name a list of {kind}s"
        )
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError as error:
        raise UserError(
            f"{path}: expected text in UTF-8, {'an' if kind[0] in 'aeiou' else 'a'} {kind} a line, found other bytes; "
            "save it as such"
        ) from error
    return [line.strip() for line in lines if line.strip()]
