"""Where data sets lie once they have been fetched, and how what lies there is read. It knows no data set."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from xattn_runtime.errors import DataError

__all__ = ["CACHE_VARIABLE", "cache_folder", "checked_archive", "damaged", "download", "is_cached", "mapped_array"]

CACHE_VARIABLE = "XATTN_EDGE_CACHE"
"""Environment variable that names another cache folder."""


def cache_folder() -> Path:
    """`$XATTN_EDGE_CACHE`, or the folder for caches that this platform gives each user.

    Raises DataError where the user has no home folder, as in some containers.
    """
    try:
        return _cache_folder()
    except RuntimeError as error:
        raise DataError(
            f"cache: expected a home folder for data sets, found none ({error}); name a folder in {CACHE_VARIABLE}"
        ) from error


def is_cached(*parts: str) -> bool:
    """Whether the cache holds this file; False too where there is no cache, or none that may be looked into."""
    try:
        return cache_folder().joinpath(*parts).is_file()
    except (DataError, OSError):
        return False


def _cache_folder() -> Path:
    if named := os.environ.get(CACHE_VARIABLE):
        return Path(named).expanduser()
    if sys.platform == "win32":
        base = Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local")
    elif sys.platform == "darwin":
        base = Path.home() / "Library" / "Caches"
    else:
        base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return base / "xattn-edge"


def damaged(path: Path, error: Exception) -> DataError:
    """What to say when a file of a data set cannot be read."""
    return DataError(f"{path}: damaged ({error}); delete {path.parent} and fetch again")


def mapped_array(path: Path) -> NDArray[Any]:
    """The array in an .npy, mapped from the disk; DataError where it is damaged."""
    try:
        array: NDArray[Any] = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError) as error:
        raise damaged(path, error) from error
    return array


def download(command: Sequence[str], folder: Path, package: str) -> str:
    """Run `command` in `folder`, which fetches `package`; what it prints. DataError where it fails."""
    result = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    if result.returncode:
        reason = (result.stderr.strip().splitlines() or ["no reason given"])[-1]
        raise DataError(f"cannot fetch {package}: {reason}")
    return result.stdout


def checked_archive(path: Path, sha256: str, package: str) -> bytes:
    """The content of the fetched file `path`; DataError where it has another checksum."""
    archive = path.read_bytes()
    digest = hashlib.sha256(archive).hexdigest()
    if digest != sha256:
        raise DataError(f"{package}: expected SHA-256 {sha256}, found {digest}")
    return archive
