"""`xattn-edge caption`: images to sentences."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from xattn_edge.commands.shared.console import Console, command
from xattn_edge.commands.shared.decoding import takes_decoding_options
from xattn_edge.commands.shared.heatmap import draw_heatmap
from xattn_edge.commands.shared.input import STANDARD_STREAM, StandardInput
from xattn_edge.commands.shared.options import (
    BundleOption,
    Debug,
    Fallback,
    Heatmap,
    HeatmapHead,
    HeatmapLayer,
    Json,
    Provider,
    Quiet,
    Threads,
    new_app,
)
from xattn_runtime.brought_files import is_folder
from xattn_runtime.generate.options import DecodingOptions

if TYPE_CHECKING:
    from xattn_runtime.tasks import CaptionTask

__all__ = ["app"]

app = new_app()


@app.command()
@takes_decoding_options()
def caption(
    images: Annotated[
        list[Path],
        typer.Argument(metavar="IMAGE...", help="Images: PNG, JPEG, WebP, GIF, BMP; or folders; - is standard input."),
    ],
    bundle: BundleOption = None,
    provider: Provider = "cpu",
    fallback: Fallback = False,
    threads: Threads = None,
    prompt: Annotated[str | None, typer.Option("--prompt", help="Continue this text, or do what it asks for.")] = None,
    *,
    decoding: DecodingOptions,
    stream: Annotated[bool, typer.Option("--stream", help="Print tokens as they are generated.")] = False,
    recursive: Annotated[bool, typer.Option("--recursive", help="Search folders within folders too.")] = False,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-o",
            help="Add a line of JSON for each image to this file; resume an interrupted run. A file that this command "
            "did not begin is refused. - is standard output.",
        ),
    ] = None,
    heatmap: Heatmap = None,
    layer: HeatmapLayer = None,
    head: HeatmapHead = None,
    as_json: Json = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Describe an image in a sentence.

    \b
    Examples:
      xattn-edge caption photo.png
      xattn-edge caption *.jpg --json
      xattn-edge caption photo.png --beams 4 --n-best 4 --prompt "a photo of"
      xattn-edge caption photo.png --temperature 0.8 --top-p 0.9 --seed 1
      xattn-edge caption photo.png --stream
      xattn-edge caption photo.png --bundle with-attention.xattn --heatmap words.png
      xattn-edge caption photos --recursive -o captions.jsonl
      xattn-edge caption - < photo.jpg
    """
    with command(as_json=as_json, quiet=quiet, debug=debug, output=output) as console:
        from xattn_edge.commands.shared.many import caption_to_file, images_in, open_for_many
        from xattn_edge.commands.shared.output import check_not_input
        from xattn_runtime.bundle.folder import default_bundle, open_bundle
        from xattn_runtime.errors import UserError
        from xattn_runtime.execution.providers import with_fallback
        from xattn_runtime.loader import load
        from xattn_runtime.tasks.shared.heatmap import check_heatmap

        if stream and (as_json or output is not None):
            raise UserError("stream: expected a caption for people to read, found --json or --output; choose one")
        if heatmap is not None:
            if len(images) > 1 or is_folder(images[0]) or stream or output is not None or decoding.n_best > 1:
                raise UserError("heatmap: expected one image and one caption of it; leave the others out")
            check_heatmap(heatmap)
            check_not_input(heatmap, images)
        opened, requested = open_bundle(bundle or default_bundle("caption")), with_fallback(provider, fallback)
        if output is not None:
            if as_json and str(output) == STANDARD_STREAM:
                raise UserError("output: expected lines of JSON on standard output or one document, found - and --json")
            if any(str(image) == STANDARD_STREAM for image in images):
                raise UserError("image: expected files beside --output, which resumes by their names, found -; save it")
            task, batches = open_for_many(opened, requested, threads)
            caption_to_file(console, task, images, output, prompt, decoding, recursive=recursive, batches=batches)
            return
        task = load(opened, requested, threads, task="caption")
        if any(is_folder(image) for image in images):
            images = [each.path for each in images_in(images, console, recursive=recursive)]
        given = StandardInput()
        if stream:
            list(console.each(images, lambda image: _stream(console, task, image, given, prompt, decoding, images)))
            return
        _print(console, task, images, given, prompt, decoding)
        if heatmap is not None and not console.exit_code:
            seen = given.file(images[0])
            draw_heatmap(console, heatmap, lambda: task.attention(seen, prompt, decoding), layer, head)


def _print(
    console: Console,
    task: CaptionTask,
    images: list[Path],
    given: StandardInput,
    prompt: str | None,
    decoding: DecodingOptions,
) -> None:
    results = []
    for image, result in console.each(images, lambda image: task.caption(given.file(image), prompt, options=decoding)):
        if not console.as_json:
            for text in [one.text for one in result.n_best] or [result.text]:
                console.line(text if len(images) == 1 else f"{image}: {text}")
        results.append({"image": str(image), **result.to_dict(), "timing_ms": asdict(result.timing_ms)})
    if console.as_json and results:
        console.document({"results": results, "provider": task.settings.name, "bundle": str(task.bundle.path)})


def _stream(
    console: Console,
    task: CaptionTask,
    image: Path,
    given: StandardInput,
    prompt: str | None,
    decoding: DecodingOptions,
    images: list[Path],
) -> None:
    tokens = task.stream(given.file(image), prompt, decoding)
    if len(images) > 1:
        console.part(f"{image}: ")
    try:
        for token in tokens:
            console.part(token.text)
    finally:
        console.line("")
