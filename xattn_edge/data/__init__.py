"""Data sets that `train` and `evaluate` read. Nothing here imports torch."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from xattn_edge.data.cache import CACHE_VARIABLE, cache_folder
from xattn_runtime.errors import DataError
from xattn_runtime.progress import Progress, silent

__all__ = ["CACHE_VARIABLE", "DataSet", "cache_folder", "data_sets", "fetch"]


@dataclass(frozen=True)
class DataSet:
    """A data set and whether it is here. synthetic: what in it no person drew, wrote or said; empty for nothing."""

    name: str
    task: str
    license: str
    synthetic: str
    splits: tuple[str, ...]
    fetched: bool

    def to_dict(self) -> dict[str, Any]:
        """JSON form."""
        return asdict(self)


def data_sets() -> tuple[DataSet, ...]:
    """Every data set that `fetch` knows."""
    from xattn_edge.data import easy_vqa, emoji_captions, emoji_images, rated_sentences

    drawings = sorted({artist.license for artist in emoji_images.ARTISTS})
    return (
        DataSet(
            "easy-vqa",
            "vqa",
            "MIT",
            "images, questions",
            easy_vqa.SPLITS,
            find_spec("easy_vqa") is not None,
        ),
        DataSet(
            "emoji",
            "caption",
            " AND ".join(drawings),
            "scenes, backgrounds",
            ("test", *emoji_captions.SPLITS),
            emoji_images.is_fetched(),
        ),
        DataSet("sentiment", "sentiment", "MIT", "speech, frames", ("test",), rated_sentences.is_fetched()),
    )


def fetch(name: str, progress: Progress = silent) -> Path:
    """Make a data set ready to use; returns the folder where it lies.

    Args:
        name: of one of `data_sets()`.
        progress: called with what is done and the share of the whole, 0 to 1.

    Raises:
        DataError: unknown name, or it cannot be fetched.
        DependencyError: a package that it needs is not installed.
    """
    if name == "emoji":
        from xattn_edge.data.emoji_images import fetch_emoji

        return fetch_emoji(progress)
    if name == "sentiment":
        from xattn_edge.data.rated_sentences import fetch_sentences

        return fetch_sentences(progress)
    if name == "easy-vqa":
        from xattn_edge.data.easy_vqa import EasyVqa

        return EasyVqa().samples("test")[0].image.parents[2]
    known = ", ".join(data_set.name for data_set in data_sets())
    raise DataError(f"unknown data set {name!r}; expected one of {known}")
