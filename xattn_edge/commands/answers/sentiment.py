"""`xattn-edge sentiment`: the sentiment of an utterance, from words, sound and frames."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from xattn_edge.commands.shared.console import command
from xattn_edge.commands.shared.input import StandardInput
from xattn_edge.commands.shared.options import BundleOption, Debug, Fallback, Json, Provider, Quiet, Threads, new_app

__all__ = ["app"]

app = new_app()


@app.command()
def sentiment(
    text: Annotated[str | None, typer.Argument(metavar="[TEXT]", help="Transcript of the utterance.")] = None,
    audio: Annotated[
        Path | None, typer.Option("--audio", help="Read speech from this WAV file of one channel; - is standard input.")
    ] = None,
    frames: Annotated[
        list[Path] | None,
        typer.Option(
            "--frames",
            help="Read frames from this image or folder of images, in the order of their numbers; repeatable.",
        ),
    ] = None,
    bundle: BundleOption = None,
    provider: Provider = "cpu",
    fallback: Fallback = False,
    threads: Threads = None,
    as_json: Json = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Classify the sentiment of text, speech and video frames.

    Text, speech and frames may each be missing, but not all of them.

    \b
    Examples:
      xattn-edge sentiment "a warm and funny film"
      xattn-edge sentiment "it was all right" --audio speech.wav --json
      xattn-edge sentiment --frames frames
    """
    with command(as_json=as_json, quiet=quiet, debug=debug) as console:
        from xattn_runtime.bundle.folder import default_bundle
        from xattn_runtime.execution.providers import with_fallback
        from xattn_runtime.loader import load

        seen = _images(frames or [])
        task = load(bundle or default_bundle("sentiment"), with_fallback(provider, fallback), threads, task="sentiment")
        given = StandardInput()
        result = task.rate(text, None if audio is None else given.file(audio), [given.file(path) for path in seen])
        if result.unknown_words:
            console.warn(f"the model does not know {', '.join(result.unknown_words)}")
        if not as_json:
            console.table([(score.label, f"{score.probability:.1%}") for score in result.scores])
            return
        console.document(
            {
                "text": text,
                "audio": None if audio is None else str(audio),
                "frames": [str(path) for path in seen],
                **result.to_dict(),
                "provider": task.settings.name,
                "bundle": str(task.bundle.path),
            }
        )


def _images(paths: list[Path]) -> list[Path]:
    """Images as they are named, and those of folders in the natural order of their names."""
    from xattn_runtime.brought_files import is_folder
    from xattn_runtime.errors import UserError
    from xattn_runtime.preprocess.image_files import IMAGE_SUFFIXES, image_files

    images: list[Path] = []
    for path in paths:
        if not is_folder(path):
            images.append(path)
        elif inside := image_files(path):
            images += inside
        else:
            raise UserError(
                f"{path}: expected images ({', '.join(IMAGE_SUFFIXES)}), found none; name the folder that has them"
            )
    return images
