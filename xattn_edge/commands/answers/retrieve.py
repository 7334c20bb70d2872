"""`xattn-edge retrieve`: the images of a folder that are nearest to a text or an image."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from xattn_edge.commands.shared.console import Console, command
from xattn_edge.commands.shared.input import STANDARD_STREAM, StandardInput
from xattn_edge.commands.shared.options import BundleOption, Debug, Fallback, Json, Provider, Quiet, Threads, new_app

if TYPE_CHECKING:
    from collections.abc import Sequence

    from xattn_runtime.retrieval.index import ImageIndex
    from xattn_runtime.tasks import Match, RetrievalTask

__all__ = ["app"]

app = new_app()


@app.command()
def retrieve(
    query: Annotated[
        str,
        typer.Argument(
            metavar="TEXT|IMAGE", help="Search for this: words, or an image file; - is an image on standard input."
        ),
    ],
    folder: Annotated[
        Path | None, typer.Option("--in", help="Search this folder of images: PNG, JPEG, WebP, GIF or BMP.")
    ] = None,
    index: Annotated[
        Path | None,
        typer.Option(
            "--index",
            help="Keep the embeddings of the images in this file; update it. A file that is no index is refused.",
        ),
    ] = None,
    bundle: BundleOption = None,
    provider: Provider = "cpu",
    fallback: Fallback = False,
    threads: Threads = None,
    top_k: Annotated[int, typer.Option("--top-k", min=1, help="List this many images.")] = 10,
    rerank: Annotated[
        int, typer.Option("--rerank", min=0, help="Rerank the N nearest by cross-attention, for a text.")
    ] = 0,
    search: Annotated[
        Literal["auto", "exact", "approximate"],
        typer.Option("--search", help="Compare all images, or only likely ones; auto: all, up to 100,000."),
    ] = "auto",
    as_json: Json = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Find the images that fit a text or another image.

    With --index, the images of --in are embedded once: the next search embeds
    only those that are new or changed, and without --in none.

    \b
    Examples:
      xattn-edge retrieve "red heart" --in photos
      xattn-edge retrieve "red heart" --in photos --index photos.xindex
      xattn-edge retrieve photo.png --index photos.xindex --top-k 3 --json
    """
    with command(as_json=as_json, quiet=quiet, debug=debug, output=index) as console:
        from xattn_runtime.bundle.folder import default_bundle
        from xattn_runtime.errors import UserError
        from xattn_runtime.execution.providers import with_fallback
        from xattn_runtime.loader import load
        from xattn_runtime.retrieval.search import search_index

        is_image = _is_image(query)
        if is_image and rerank:
            raise UserError(f"rerank: expected a text to look again for, found the image {query}; leave --rerank out")
        task = load(bundle or default_bundle("retrieval"), with_fallback(provider, fallback), threads, task="retrieval")
        if rerank and not task.reranks:
            raise UserError(f"{task.bundle.path}: expected a bundle that re-ranks, found none; leave --rerank out")
        if is_image:
            embedding = task.embed_images([StandardInput().file(Path(query))])[0]
        else:
            embedding = task.embed_texts([query])[0]
        images = _indexed(console, task, folder, index)
        if not images.files:
            return
        matches = search_index(task, images, embedding, max(top_k, rerank), search)
        results = _results(images, matches, is_image)
        if rerank:
            results = _reranked(task, query, results, rerank)
        _show(
            console, results[:top_k], {"query": query, "provider": task.settings.name, "bundle": str(task.bundle.path)}
        )


def _indexed(console: Console, task: RetrievalTask, folder: Path | None, index: Path | None) -> ImageIndex:
    """The index in the file `index`, first brought up to date where there is a folder; else one in memory."""
    from xattn_runtime.errors import UserError
    from xattn_runtime.retrieval.index import embed_folder, open_index, update_index

    if folder is None:
        if index is None:
            raise UserError("expected a folder of images or an index of one, found neither; use --in or --index")
        return open_index(index, task.bundle)
    with console.progress() as progress:
        report = embed_folder(task, folder, progress) if index is None else update_index(task, folder, index, progress)
    for error in report.refused:
        console.refuse(error)
    if index is not None:
        console.note(
            f"{index}: {len(report.index.files)} images, {report.embedded} of them new or altered, "
            f"{report.removed} gone"
        )
    return report.index


def _results(images: ImageIndex, matches: Sequence[Match], is_image: bool) -> list[dict[str, Any]]:
    # What the model says of a text and an image it does not say of two images.
    return [
        {
            "image": str(images.image(match.index)),
            "cosine": match.cosine,
            "probability": None if is_image else match.probability,
        }
        for match in matches
    ]


def _reranked(task: RetrievalTask, text: str, results: list[dict[str, Any]], count: int) -> list[dict[str, Any]]:
    """The first `count` in the order of their scores by cross-attention, then the others."""
    first = results[:count]
    scores = task.rerank(text, [Path(each["image"]) for each in first], [each["cosine"] for each in first])
    again = [{**result, "score": float(score)} for result, score in zip(first, scores, strict=True)]
    return sorted(again, key=lambda result: -result["score"]) + results[count:]


def _show(console: Console, results: Sequence[dict[str, Any]], made_by: dict[str, str]) -> None:
    if console.as_json:
        query, rest = made_by.pop("query"), made_by
        console.document({"query": query, "results": list(results), **rest})
    else:
        console.table([(result["image"], result["cosine"]) for result in results])


def _is_image(query: str) -> bool:
    """Whether a query is the path of an image: by its suffix, or because there is such a file."""
    from xattn_runtime.preprocess.image_files import is_image_file

    try:
        return query == STANDARD_STREAM or is_image_file(Path(query)) or Path(query).is_file()
    except OSError:  # a text too long for a path
        return False
