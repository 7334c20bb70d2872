"""`xattn-edge caption`: pictures to sentences."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from xattn_edge.commands.shared.caption_json import caption_json
from xattn_edge.commands.shared.console import Console, command
from xattn_edge.commands.shared.heatmap import draw_heatmap
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

if TYPE_CHECKING:
    from xattn_runtime.tasks import CaptionTask, DecodingOptions

__all__ = ["app"]

app = new_app()


@app.command()
def caption(
    images: Annotated[
        list[Path],
        typer.Argument(metavar="IMAGE...", help="Pictures: PNG, JPEG, WebP, GIF, BMP; or folders."),
    ],
    bundle: BundleOption = None,
    provider: Provider = "cpu",
    fallback: Fallback = False,
    threads: Threads = None,
    prompt: Annotated[
        str | None, typer.Option("--prompt", help="Text that the caption goes on from, or what is asked for.")
    ] = None,
    prefix: Annotated[str | None, typer.Option("--prefix", help="What the caption begins with.")] = None,
    beams: Annotated[
        int | None, typer.Option("--beams", min=1, help="Sequences searched at once; without it, as the bundle says.")
    ] = None,
    length_penalty: Annotated[
        float | None, typer.Option("--length-penalty", help="Of beams: above 0 favours long captions, below 0 short.")
    ] = None,
    early_stopping: Annotated[
        Literal["true", "false", "never"] | None,
        typer.Option("--early-stopping", help="Of beams: true ends when all have ended, never seeks the longest."),
    ] = None,
    max_new_tokens: Annotated[
        int | None, typer.Option("--max-new-tokens", min=1, help="Stop a caption after so many tokens.")
    ] = None,
    min_new_tokens: Annotated[
        int | None, typer.Option("--min-new-tokens", min=0, help="Let no caption end before so many tokens.")
    ] = None,
    repetition_penalty: Annotated[
        float | None, typer.Option("--repetition-penalty", help="Above 1: tokens that were there come less likely.")
    ] = None,
    no_repeat_ngram_size: Annotated[
        int | None, typer.Option("--no-repeat-ngram-size", min=0, help="No sequence of so many tokens comes twice.")
    ] = None,
    temperature: Annotated[
        float | None, typer.Option("--temperature", help="Draw tokens: below 1 likely ones more, above 1 less often.")
    ] = None,
    top_k: Annotated[int | None, typer.Option("--top-k", min=0, help="Draw among so many of the best.")] = None,
    top_p: Annotated[
        float | None, typer.Option("--top-p", help="Draw among the fewest best with this probability together.")
    ] = None,
    min_p: Annotated[
        float | None, typer.Option("--min-p", help="Draw none below this share of the best one's probability.")
    ] = None,
    seed: Annotated[int | None, typer.Option("--seed", min=0, help="Draw the same tokens every time.")] = None,
    n_best: Annotated[
        int, typer.Option("--n-best", min=1, help="Captions of a picture: the best of the beams, or so many draws.")
    ] = 1,
    stop: Annotated[list[str] | None, typer.Option("--stop", help="End a caption before this text; repeat it.")] = None,
    stream: Annotated[bool, typer.Option("--stream", help="Print a caption word by word, as it is made.")] = False,
    recursive: Annotated[bool, typer.Option("--recursive", help="Look into folders of folders too.")] = False,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="Write a line of JSON for each picture; goes on where it was broken off."),
    ] = None,
    heatmap: Heatmap = None,
    layer: HeatmapLayer = None,
    head: HeatmapHead = None,
    as_json: Json = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Say in a sentence what a picture shows.

    \b
    Examples:
      xattn-edge caption picture.png
      xattn-edge caption *.jpg --json
      xattn-edge caption picture.png --beams 4 --n-best 4 --prompt "a picture of"
      xattn-edge caption picture.png --temperature 0.8 --top-p 0.9 --seed 1
      xattn-edge caption picture.png --stream
      xattn-edge caption picture.png --bundle with-attention.xattn --heatmap words.png
      xattn-edge caption pictures --recursive -o captions.jsonl
    """
    with command(as_json=as_json, quiet=quiet, debug=debug, output=output) as console:
        from xattn_edge.commands.shared.many import caption_to_file, images_in, open_for_many
        from xattn_runtime.bundle.folder import default_bundle, open_bundle
        from xattn_runtime.errors import UserError
        from xattn_runtime.execution.providers import with_fallback
        from xattn_runtime.loader import load
        from xattn_runtime.tasks import DecodingOptions
        from xattn_runtime.tasks.shared.heatmap import check_heatmap

        options = DecodingOptions(
            beams=beams,
            max_new_tokens=max_new_tokens,
            min_new_tokens=min_new_tokens,
            length_penalty=length_penalty,
            early_stopping="never" if early_stopping == "never" else early_stopping and early_stopping == "true",
            repetition_penalty=repetition_penalty,
            no_repeat_ngram_size=no_repeat_ngram_size,
            temperature=temperature,
            top_k=top_k,
            top_p=top_p,
            min_p=min_p,
            seed=seed,
            n_best=n_best,
            stop=tuple(stop or ()),
            prefix=prefix,
        )
        if stream and (as_json or output is not None):
            raise UserError("stream: expected a caption for people to read, found --json or --output; choose one")
        if heatmap is not None:
            if len(images) > 1 or images[0].is_dir() or stream or output is not None or n_best > 1:
                raise UserError("heatmap: expected one picture and one caption of it; leave the others out")
            check_heatmap(heatmap)
        opened, asked = open_bundle(bundle or default_bundle("caption")), with_fallback(provider, fallback)
        if output is not None:
            task, batches = open_for_many(opened, asked, threads)
            caption_to_file(console, task, images, output, prompt, options, recursive=recursive, batches=batches)
            return
        task = load(opened, asked, threads, task="caption")
        if any(image.is_dir() for image in images):
            images = [picture.path for picture in images_in(images, recursive=recursive)]
        if stream:
            list(console.each(images, lambda image: _stream(console, task, image, prompt, options, images)))
            return
        _print(console, task, images, prompt, options)
        if heatmap is not None and not console.exit_code:
            draw_heatmap(console, heatmap, lambda: task.attention(images[0], prompt, options), layer, head)


def _print(
    console: Console, task: CaptionTask, images: list[Path], prompt: str | None, options: DecodingOptions
) -> None:
    results = []
    for image, found in console.each(images, lambda image: task.caption(image, prompt, options=options)):
        if not console.as_json:
            for text in [one.text for one in found.n_best] or [found.text]:
                console.line(text if len(images) == 1 else f"{image}: {text}")
        results.append({"image": str(image), **caption_json(found), "timing_ms": asdict(found.timing_ms)})
    if console.as_json and results:
        console.document({"results": results, "provider": task.settings.name, "bundle": str(task.bundle.path)})


def _stream(
    console: Console, task: CaptionTask, image: Path, prompt: str | None, options: DecodingOptions, images: list[Path]
) -> None:
    tokens = task.stream(image, prompt, options)
    if len(images) > 1:
        console.part(f"{image}: ")
    try:
        for token in tokens:
            console.part(token.text)
    finally:
        console.line("")
