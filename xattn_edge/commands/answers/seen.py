"""What a question or a conversation is about, as the command line has it: an image, several, or frames of a video."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from xattn_edge.commands.shared.input import StandardInput

if TYPE_CHECKING:
    from xattn_runtime.tasks.shared.prompt_images import Seen

__all__ = ["Times", "described", "seen_in"]

Times = Annotated[
    str | None,
    typer.Option(
        "--times",
        metavar="SECONDS",
        help="Take the images as frames of one video, seen at these seconds: one number for each, with commas between.",
    ),
]


def seen_in(images: Sequence[Path], times: str | None, given: StandardInput) -> Seen:
    """The images to encode together, as the command names them; UserError where `times` are none of theirs."""
    from xattn_runtime.preprocess.prompts.video import Video

    files = [given.file(image) for image in images]
    if times is not None:
        return Video(files, _seconds(times))
    return files[0] if len(files) == 1 else files


def described(images: Sequence[Path], times: str | None) -> dict[str, Any]:
    """The input of an answer, as --json prints it."""
    if times is not None:
        return {"images": [str(image) for image in images], "times": _seconds(times)}
    return {"image": str(images[0])} if len(images) == 1 else {"images": [str(image) for image in images]}


def _seconds(text: str) -> list[float]:
    from xattn_runtime.errors import UserError
    from xattn_runtime.json_reader import show

    try:
        return [float(part) for part in text.split(",")]
    except ValueError as error:
        raise UserError(
            f"times: expected seconds with commas between, such as 0,1.5,3, found {show(text)}; one for each image"
        ) from error
