"""Data sets that `train` and `evaluate` read. Nothing here imports torch."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from xattn_edge.data.cache import CACHE_VARIABLE, cache_folder
from xattn_runtime.errors import DataError

__all__ = ["CACHE_VARIABLE", "DATA_SETS", "cache_folder", "fetch"]

DATA_SETS = {
    "easy-vqa": "48,248 questions about 5,000 pictures of one coloured shape (MIT)",
    "emoji": "3,125 emoji by four artists, alone and in scenes, with captions (Apache-2.0, CC-BY, MIT, CC-BY-SA)",
}
"""What `fetch` knows, with a line on each."""


def fetch(name: str, progress: Callable[[str, float], None] | None = None) -> Path:
    """Make a data set ready to use; returns the folder where it lies.

    Args:
        name: a key of `DATA_SETS`.
        progress: called with what is done and the share of the whole, 0 to 1.

    Raises:
        DataError: unknown name, or it cannot be fetched.
        DependencyError: a package that it needs is not installed.
    """
    if name == "emoji":
        from xattn_edge.data.emoji_pictures import fetch_emoji

        return fetch_emoji(progress)
    if name == "easy-vqa":
        from xattn_edge.data.easy_vqa import EasyVqa

        return EasyVqa().samples("test")[0].image.parents[2]
    raise DataError(f"unknown data set {name!r}; expected one of {', '.join(DATA_SETS)}")
