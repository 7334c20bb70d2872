"""`xattn-edge classify`: which of your own labels fits an image, by a model that was trained on none of them."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from xattn_edge.commands.shared.console import command
from xattn_edge.commands.shared.input import STANDARD_STREAM, StandardInput
from xattn_edge.commands.shared.options import Debug, Fallback, Json, Provider, Quiet, Threads, new_app

__all__ = ["app"]

app = new_app()


@app.command()
def classify(
    image: Annotated[
        Path, typer.Argument(metavar="IMAGE", help="An image: PNG, JPEG, WebP, GIF or BMP; - is standard input.")
    ],
    labels: Annotated[
        list[str] | None, typer.Argument(metavar="LABEL...", help="Labels to choose among, each quoted.")
    ] = None,
    bundle: Annotated[
        Path | None, typer.Option("--bundle", "-b", help="Retrieval bundle to run, of CLIP or SigLIP.")
    ] = None,
    labels_file: Annotated[
        Path | None, typer.Option("--labels", help="Read labels from a file, one per line; - is standard input.")
    ] = None,
    template: Annotated[
        str, typer.Option("--template", help="Make a text of each label with this.")
    ] = "a photo of a {label}",
    provider: Provider = "cpu",
    fallback: Fallback = False,
    threads: Threads = None,
    top_k: Annotated[int, typer.Option("--top-k", min=1, help="List this many labels.")] = 5,
    as_json: Json = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Rank your own labels by their probability for an image.

    The probabilities of a model like CLIP are those of one label among all
    and sum to 1; a model like SigLIP judges each label by itself.

    \b
    Examples:
      xattn-edge classify photo.png "red circle" "blue square" --bundle clip.xattn
      xattn-edge classify photo.png --labels labels.txt --bundle clip.xattn --top-k 3 --json
    """
    with command(as_json=as_json, quiet=quiet, debug=debug) as console:
        from xattn_runtime.errors import UserError
        from xattn_runtime.execution.providers import with_fallback
        from xattn_runtime.loader import load

        if bundle is None:
            raise UserError(
                "bundle: expected --bundle with a retrieval bundle of CLIP or SigLIP, found none: no model that ships "
                "states how probable a label is; make one with `xattn-edge export openai/clip-vit-base-patch32 -o "
                "clip.xattn`"
            )
        if str(image) == str(labels_file) == STANDARD_STREAM:
            raise UserError("-: expected it once, as standard input is read once, found it twice; name a file")
        given = StandardInput()
        names = [*(labels or ()), *(given.lines(labels_file, "label") if labels_file else ())]
        task = load(bundle, with_fallback(provider, fallback), threads, task="retrieval")
        classification = task.classify(given.file(image), names, template)
        best = classification.scores[:top_k]
        if as_json:
            console.document(
                {
                    "image": str(image),
                    "label": classification.label,
                    "probability": classification.probability,
                    "results": [asdict(score) for score in best],
                    "among_labels": classification.among_labels,
                    "template": template,
                    "timing_ms": asdict(classification.timing_ms),
                    "provider": task.settings.name,
                    "bundle": str(task.bundle.path),
                }
            )
        else:
            console.table([(score.label, f"{score.probability:.1%}") for score in best])
