"""Which files are images, by their names, and which of them lie in a folder. No file is opened."""

from __future__ import annotations

from pathlib import Path

__all__ = ["IMAGE_SUFFIXES", "image_files", "is_image_file"]

IMAGE_SUFFIXES = (".bmp", ".gif", ".jpeg", ".jpg", ".png", ".webp")
"""Of files that are images, in lower case."""


def is_image_file(path: Path) -> bool:
    """Whether a file of this name is an image: by its suffix, and if it is not hidden."""
    return path.suffix.lower() in IMAGE_SUFFIXES and not path.name.startswith(".")


def image_files(folder: Path, *, recursive: bool = False) -> list[Path]:
    """The images in a folder, and with `recursive` in the folders within it, in the order of their paths.

    Raises OSError where the folder cannot be read.
    """
    paths = folder.rglob("*") if recursive else folder.iterdir()
    return sorted(path for path in paths if is_image_file(path) and path.is_file())
