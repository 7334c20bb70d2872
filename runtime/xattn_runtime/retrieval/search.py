"""The nearest of many embeddings: all of them compared, or, of very many, found in a graph that `usearch` keeps."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from xattn_runtime.errors import DependencyError, IndexFileError, UserError
from xattn_runtime.files import atomic_file
from xattn_runtime.json_reader import one_line, show
from xattn_runtime.retrieval.match import Embedder, Embeddings, Match

if TYPE_CHECKING:
    from xattn_runtime.retrieval.index import ImageIndex

__all__ = ["EXACT_AT_MOST", "SEARCHES", "Search", "has_usearch", "search_index"]

Search = Literal["auto", "exact", "approximate"]
SEARCHES: tuple[Search, ...] = ("auto", "exact", "approximate")

EXACT_AT_MOST = 100_000
"""Up to so many images `auto` compares all of them."""

_ROWS = 16_384


def has_usearch() -> bool:
    """Whether `usearch` is installed."""
    from importlib.util import find_spec

    return find_spec("usearch") is not None


def search_index(
    embedder: Embedder, index: ImageIndex, query: Embeddings, top_k: int = 10, search: Search = "auto"
) -> tuple[Match, ...]:
    """The `top_k` of `index` that are nearest to `query` `[width]`, the nearest first.

    search: `exact`, `approximate`, or `auto`: approximate for more than `EXACT_AT_MOST` where `usearch` is installed.
        What is found approximately has no probability.

    Raises:
        UserError: another search, or a `top_k` below 1.
        DependencyError: `approximate` without `usearch`.
        IndexFileError: a file that is no graph lies where the graph is kept.
    """
    if search not in SEARCHES:
        raise UserError(f"search: expected one of {', '.join(SEARCHES)}, found {show(search)}")
    is_large = len(index.files) > EXACT_AT_MOST
    if search == "approximate" or (search == "auto" and is_large and has_usearch()):
        return _nearest(index, query, top_k)
    if search == "auto" and is_large:
        logging.getLogger("xattn_runtime").info(
            f"{index.path}: comparing all of {len(index.files)} images; with "
            'pip install "xattn-edge[ann]" only the likely ones are'
        )
    return embedder.rank(query, index.embeddings, top_k)


def _parts(embeddings: Embeddings) -> Iterator[tuple[int, Embeddings]]:
    for start in range(0, len(embeddings), _ROWS):
        yield start, np.asarray(embeddings[start : start + _ROWS])


def _nearest(index: ImageIndex, query: Embeddings, top_k: int) -> tuple[Match, ...]:
    nearest = _graph(index).search(query, min(top_k, len(index.files)))
    rows = np.asarray(nearest.keys, dtype=np.int64)
    # The graph holds half precision: its results are compared once more.
    cosines = np.asarray(index.embeddings[rows]) @ query
    order = np.argsort(-cosines, kind="stable")
    return tuple(Match(int(rows[i]), float(cosines[i]), None) for i in order)


def _graph(index: ImageIndex) -> Any:
    """The graph beside the index file, made anew where there is none that is younger than the index."""
    try:
        usearch: Any = import_module("usearch.index")
    except ModuleNotFoundError as error:
        raise DependencyError(
            'usearch: not installed, and approximate search needs it; run pip install "xattn-edge[ann]", or use '
            "--search exact"
        ) from error
    path = _graph_path(index.path)
    width = index.embeddings.shape[1]
    kept = _kept(usearch, path)
    is_young = kept is not None and path.stat().st_mtime_ns >= index.path.stat().st_mtime_ns
    if is_young and (len(kept), kept.ndim) == (len(index.files), width):
        return kept
    graph = usearch.Index(ndim=width, metric="ip", dtype="f16")
    for start, part in _parts(index.embeddings):
        graph.add(np.arange(start, start + len(part)), part)
    _save(graph, path)
    return graph


def _kept(usearch: Any, path: Path) -> Any:
    """The graph in the file `path`, or None where there is none; IndexFileError where the file is none of usearch's."""
    if not os.path.lexists(path):
        return None
    try:
        if usearch.Index.metadata(str(path)) is not None:
            return usearch.Index.restore(str(path), view=True)
    except (OSError, RuntimeError, ValueError):  # no graph, or a damaged one
        pass
    raise IndexFileError(
        f"{path}: expected the graph that approximate search keeps beside its index, found another file; move it away, "
        "or use --search exact"
    )


def _save(graph: Any, path: Path) -> None:
    """Kept for the next search; where nothing can be written, the next one makes it anew."""
    try:
        with atomic_file(path) as temporary:
            graph.save(str(temporary))
    except (OSError, RuntimeError) as error:
        logging.getLogger("xattn_runtime").info(f"{path}: cannot be kept for the next search: {one_line(error)}")


def _graph_path(index: Path) -> Path:
    return index.with_name(f"{index.name}.usearch")
