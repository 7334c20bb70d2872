"""`xattn-edge caption`: pictures to sentences."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from xattn_edge.commands._console import command
from xattn_edge.commands._options import BundleOption, Debug, Fallback, Json, Provider, Quiet, Threads, new_app

__all__ = ["app"]

app = new_app()


@app.command()
def caption(
    images: Annotated[list[Path], typer.Argument(metavar="IMAGE...", help="Pictures: PNG, JPEG, WebP, GIF or BMP.")],
    bundle: BundleOption = None,
    provider: Provider = "cpu",
    fallback: Fallback = False,
    threads: Threads = None,
    prompt: Annotated[
        str | None, typer.Option("--prompt", help="Text that the caption goes on from, or what is asked for.")
    ] = None,
    beams: Annotated[
        int | None, typer.Option("--beams", min=1, help="Sequences searched at once; without it, as the bundle says.")
    ] = None,
    max_new_tokens: Annotated[
        int | None, typer.Option("--max-new-tokens", min=1, help="Stop a caption after so many tokens.")
    ] = None,
    as_json: Json = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Say in a sentence what a picture shows.

    \b
    Examples:
      xattn-edge caption picture.png
      xattn-edge caption *.jpg --json
      xattn-edge caption picture.png --beams 4 --prompt "a picture of"
    """
    with command(as_json=as_json, quiet=quiet, debug=debug) as console:
        from xattn_runtime.bundle import default_bundle, open_bundle
        from xattn_runtime.providers import with_fallback
        from xattn_runtime.tasks import CaptionTask

        task = CaptionTask(open_bundle(bundle or default_bundle("caption")), with_fallback(provider, fallback), threads)
        results = []
        for image, found in console.each(images, lambda image: task.caption(image, prompt, beams, max_new_tokens)):
            if not as_json:
                console.line(found.text if len(images) == 1 else f"{image}: {found.text}")
            results.append(
                {
                    "image": str(image),
                    "caption": found.text,
                    "token_ids": list(found.token_ids),
                    "score": found.score,
                    "timing_ms": asdict(found.timing_ms),
                }
            )
        if as_json and results:
            console.document({"results": results, "provider": task.settings.name, "bundle": str(task.bundle.path)})
