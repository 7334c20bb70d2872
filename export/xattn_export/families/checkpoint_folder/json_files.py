"""Reading the JSON files of a checkpoint's folder, each of which holds one object."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from xattn_runtime.brought_files import marked_encoding, placeholder_of
from xattn_runtime.errors import CheckpointError
from xattn_runtime.json_reader import one_line, show

__all__ = ["read_json", "read_present_json", "refuse_placeholders"]

_SUFFIXES = (".json", ".safetensors", ".bin", ".pt", ".pth", ".model", ".txt")
_HEAD_BYTES = 1024


def refuse_placeholders(folder: Path) -> None:
    """CheckpointError for what a clone without large files, or a failed download, has in place of a file."""
    try:
        files = sorted(file for file in folder.iterdir() if file.suffix in _SUFFIXES)
    except OSError:  # no folder, or one that cannot be read: whoever needs its files says so
        return
    for path in files:
        try:
            with path.open("rb") as stream:
                head = stream.read(_HEAD_BYTES)
        except OSError:  # a link of git-annex leads nowhere
            head = str(path.readlink()).encode() if path.is_symlink() else b""
        if (found := placeholder_of(head)) is not None:
            raise CheckpointError(f"{path}: expected a file of a checkpoint, found {found}")


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object in `path`, empty where there is no such file; CheckpointError where it holds something else."""
    try:
        return read_present_json(path)
    except (FileNotFoundError, NotADirectoryError):
        return {}


def read_present_json(path: Path) -> dict[str, Any]:
    """The JSON object in `path`; CheckpointError where it holds something else.

    Raises FileNotFoundError or NotADirectoryError where there is no such file.
    """
    try:
        written = path.read_bytes()
        if marked_encoding(written) is not None:  # Transformers does not read such a file either
            raise CheckpointError(
                f"{path}: expected UTF-8 without a byte-order mark, found one at its beginning; save it again without"
            )
        content = json.loads(written.decode("utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        raise
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(
            f"{path}: expected readable JSON, found: {one_line(error)}; copy the file again"
        ) from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{path}: expected a JSON object, found {show(content)}; copy the file again")
    return content
