"""`xattn-edge classify`: which of your own labels fits a picture, by a model that was trained on none of them."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from xattn_edge.commands.shared.console import command
from xattn_edge.commands.shared.input import read_lines
from xattn_edge.commands.shared.options import Debug, Fallback, Json, Provider, Quiet, Threads, new_app

__all__ = ["app"]

app = new_app()


@app.command()
def classify(
    image: Annotated[Path, typer.Argument(metavar="IMAGE", help="A picture: PNG, JPEG, WebP, GIF or BMP.")],
    bundle: Annotated[Path, typer.Option("--bundle", "-b", help="Retrieval bundle to run, of CLIP or SigLIP.")],
    labels: Annotated[
        list[str] | None, typer.Argument(metavar="LABEL...", help="What it may show, each label quoted.")
    ] = None,
    labels_file: Annotated[Path | None, typer.Option("--labels", help="File with a label a line.")] = None,
    template: Annotated[
        str, typer.Option("--template", help="What is said of the picture for each label.")
    ] = "a photo of a {label}",
    provider: Provider = "cpu",
    fallback: Fallback = False,
    threads: Threads = None,
    top_k: Annotated[int, typer.Option("--top-k", min=1, help="Labels to list.")] = 5,
    as_json: Json = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Say how probable labels of your own are for a picture.

    The probabilities of a model like CLIP are those of one label among all
    and sum to 1; a model like SigLIP judges each label by itself.

    \b
    Examples:
      xattn-edge classify picture.png "red circle" "blue square" --bundle clip.xattn
      xattn-edge classify picture.png --labels labels.txt --bundle clip.xattn --top-k 3 --json
    """
    with command(as_json=as_json, quiet=quiet, debug=debug) as console:
        from xattn_runtime.execution.providers import with_fallback
        from xattn_runtime.loader import load

        names = [*(labels or ()), *(read_lines(labels_file, "label") if labels_file else ())]
        task = load(bundle, with_fallback(provider, fallback), threads, task="retrieval")
        found = task.classify(image, names, template)
        best = found.scores[:top_k]
        if as_json:
            console.document(
                {
                    "image": str(image),
                    "label": found.label,
                    "probability": found.probability,
                    "results": [asdict(score) for score in best],
                    "among_labels": found.among_labels,
                    "template": template,
                    "timing_ms": asdict(found.timing_ms),
                    "provider": task.settings.name,
                    "bundle": str(task.bundle.path),
                }
            )
        else:
            console.table([(score.label, f"{score.probability:.1%}") for score in best])
