"""Which files are images, by their names, and which of them lie in a folder. No file is opened."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

from xattn_runtime.brought_files import is_system_file, natural_key

__all__ = ["IMAGE_SUFFIXES", "image_files", "is_image_file"]

IMAGE_SUFFIXES = (".bmp", ".gif", ".jpeg", ".jpg", ".png", ".webp")
"""Of files that are images, in lower case."""


def is_image_file(path: Path) -> bool:
    """Whether a file of this name is an image: by its suffix, and if it is not hidden."""
    return path.suffix.lower() in IMAGE_SUFFIXES and not _is_hidden(path.name)


def image_files(
    folder: Path, *, recursive: bool = False, on_unreadable: Callable[[OSError], None] | None = None
) -> list[Path]:
    """The images in a folder, and with `recursive` in the folders within it, in the natural order of their paths.

    Whatever has the name of an image and is no folder is one, a broken link too: who opens it says what is wrong.
    Hidden folders, and those that other systems keep for themselves, are left out; links to folders are not followed.

    on_unreadable: receives the error for a folder within that cannot be read; by default it is raised.
    Raises OSError where the folder cannot be read.
    """
    paths: list[Path] = []

    def failed(error: OSError) -> None:
        if on_unreadable is None or error.filename == os.fspath(folder):
            _raise(error)
        on_unreadable(error)

    for root, folders, names in os.walk(folder, onerror=failed):
        folders[:] = [name for name in folders if recursive and not _is_hidden(name)]
        paths += [path for name in names if is_image_file(path := Path(root, name))]
    return sorted(paths, key=natural_key)


def _is_hidden(name: str) -> bool:
    return name.startswith(".") or is_system_file(name)


def _raise(error: OSError) -> NoReturn:
    raise error
