"""`xattn-edge retrieve`: the pictures of a folder that are nearest to a text or a picture."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from xattn_edge.commands._console import Console, command
from xattn_edge.commands._options import Debug, Fallback, Json, Provider, Quiet, Threads, new_app

if TYPE_CHECKING:
    from xattn_runtime.tasks import RetrievalTask
    from xattn_runtime.tasks.retrieval import Embeddings

__all__ = ["app"]

app = new_app()

_BATCH = 16
_SUFFIXES = frozenset({".bmp", ".gif", ".jpeg", ".jpg", ".png", ".webp"})


@app.command()
def retrieve(
    query: Annotated[str, typer.Argument(metavar="TEXT|IMAGE", help="What to look for: words, or a picture file.")],
    folder: Annotated[Path, typer.Option("--in", help="Folder of pictures: PNG, JPEG, WebP, GIF or BMP.")],
    bundle: Annotated[Path, typer.Option("--bundle", "-b", help="Retrieval bundle to run.")],
    provider: Provider = "cpu",
    fallback: Fallback = False,
    threads: Threads = None,
    top_k: Annotated[int, typer.Option("--top-k", min=1, help="Pictures to list.")] = 10,
    as_json: Json = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Find the pictures that fit a text or another picture.

    \b
    Examples:
      xattn-edge retrieve "a red circle" --in pictures --bundle clip.xattn
      xattn-edge retrieve picture.png --in pictures --bundle clip.xattn --top-k 3 --json
    """
    with command(as_json=as_json, quiet=quiet, debug=debug) as console:
        from xattn_runtime.bundle import open_bundle
        from xattn_runtime.providers import with_fallback
        from xattn_runtime.tasks import RetrievalTask

        pictures = _pictures(folder)
        task = RetrievalTask(open_bundle(bundle), with_fallback(provider, fallback), threads)
        is_picture = _is_picture(query)
        wanted = task.embed_images([Path(query)])[0] if is_picture else task.embed_texts([query])[0]
        found = _embed(console, task, pictures)
        results: list[dict[str, Any]] = []
        for match in task.rank(wanted, [embedding for _, embedding in found], top_k):
            image, _ = found[match.index]
            # What the model says of a text and a picture it does not say of two pictures.
            probability = None if is_picture else match.probability
            results.append({"image": str(image), "cosine": match.cosine, "probability": probability})
        if as_json and results:
            console.document(
                {"query": query, "results": results, "provider": task.settings.name, "bundle": str(task.bundle.path)}
            )
        elif results:
            console.table([(result["image"], result["cosine"]) for result in results])


def _embed(console: Console, task: RetrievalTask, pictures: Sequence[Path]) -> list[tuple[Path, Embeddings]]:
    """Every picture that can be used with its embedding, several a run."""
    from xattn_runtime.errors import ImageError

    found: list[tuple[Path, Embeddings]] = []
    with console.progress() as tell:
        for start in range(0, len(pictures), _BATCH):
            tell("looking at pictures", start / len(pictures))
            batch = pictures[start : start + _BATCH]
            try:
                found += zip(batch, task.embed_images(batch), strict=True)
            except ImageError:  # one by one, so that the others go on
                found += console.each(batch, lambda picture: task.embed_images([picture])[0])
    return found


def _pictures(folder: Path) -> list[Path]:
    from xattn_runtime.errors import UserError

    if not folder.is_dir():
        found = "a file" if folder.exists() else "nothing"
        raise UserError(f"{folder}: expected a folder of pictures, found {found}; check the path")
    pictures = sorted(path for path in folder.iterdir() if path.suffix.lower() in _SUFFIXES and path.is_file())
    if not pictures:
        raise UserError(
            f"{folder}: expected pictures ({', '.join(sorted(_SUFFIXES))}), found none; name the folder that has them"
        )
    return pictures


def _is_picture(query: str) -> bool:
    """Whether a query is the path of a picture: by its suffix, or because there is such a file."""
    try:
        return Path(query).suffix.lower() in _SUFFIXES or Path(query).is_file()
    except OSError:  # a text too long for a path
        return False
