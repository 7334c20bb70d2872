"""`xattn-edge chat`: a conversation about images, a question a line."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from xattn_edge.commands.answers.seen import Times, described, seen_in
from xattn_edge.commands.shared.console import Console, command
from xattn_edge.commands.shared.decoding import takes_decoding_options
from xattn_edge.commands.shared.input import STANDARD_STREAM, StandardInput
from xattn_edge.commands.shared.options import (
    BundleOption,
    Debug,
    Fallback,
    Provider,
    Quiet,
    Threads,
    new_app,
)
from xattn_runtime.generate.options import DecodingOptions

if TYPE_CHECKING:
    from xattn_runtime.tasks import Chat

__all__ = ["app"]

app = new_app()

_LONGEST_LINE_BYTES = 65_536


@app.command()
@takes_decoding_options()
def chat(
    images: Annotated[
        list[Path], typer.Argument(metavar="IMAGE...", help="What to talk about: images, PNG, JPEG, WebP, GIF or BMP.")
    ],
    bundle: BundleOption = None,
    system: Annotated[str | None, typer.Option("--system", help="What the model is told to be, before all.")] = None,
    times: Times = None,
    provider: Provider = "cpu",
    fallback: Fallback = False,
    threads: Threads = None,
    *,
    decoding: DecodingOptions,
    as_json: Annotated[bool, typer.Option("--json", help="Print a line of JSON for each answer.")] = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Talk about images, a question a line.

    Questions come from standard input.
    The model sees all that was said before, and computes only what is new.
    It ends with the input: in a terminal, with Ctrl-D.
    For bundles of models that hold conversations, such as SmolVLM.

    \b
    Examples:
      xattn-edge chat photo.png --bundle smolvlm.xattn
      xattn-edge chat before.png after.png --bundle smolvlm.xattn --system "Answer in one word."
      xattn-edge chat photo.png --bundle smolvlm.xattn --json < questions.txt
    """
    with command(as_json=as_json, quiet=quiet, debug=debug) as console:
        from xattn_runtime.bundle.folder import default_bundle
        from xattn_runtime.errors import QuestionError, UserError
        from xattn_runtime.execution.providers import with_fallback
        from xattn_runtime.loader import load

        if any(str(image) == STANDARD_STREAM for image in images):
            raise UserError("image: expected files, as standard input is what you say, found -; save the image")
        task = load(bundle or default_bundle("vqa"), with_fallback(provider, fallback), threads, task="vqa")
        talk = task.chat(seen_in(images, times, StandardInput()), system)
        for question in _lines(quiet):
            try:
                _answer(console, talk, question, decoding, described(images, times))
            except QuestionError as error:
                console.refuse(error)


def _answer(console: Console, talk: Chat, question: str, decoding: DecodingOptions, seen: dict[str, object]) -> None:
    """Ask, and print the answer; as it grows, where it is for a person and cannot change any more."""
    if console.as_json:
        answer = talk.ask(question, options=decoding)
        console.json_line({**seen, "question": question, **answer.to_dict()})
    elif (decoding.beams or 1) > 1 or decoding.n_best > 1:
        for text, _ in talk.ask(question, options=decoding).top:
            console.line(text)
    else:
        tokens = talk.stream(question, decoding)
        try:
            for token in tokens:
                console.part(token.text)
        finally:
            console.line("")


def _lines(quiet: bool) -> Iterator[str]:
    """What is said: lines of standard input that are not blank; a person is asked for each."""
    from xattn_runtime.errors import UserError

    if sys.stdin is None:
        raise UserError("standard input: expected questions, found it closed; pipe them into the command")
    is_terminal = sys.stdin.isatty() and not quiet
    while True:
        if is_terminal:
            print("> ", end="", file=sys.stderr, flush=True)
        if not (line := sys.stdin.buffer.readline(_LONGEST_LINE_BYTES)):
            return
        try:
            question = line.decode().strip()
        except UnicodeDecodeError as error:
            raise UserError("standard input: expected questions in UTF-8, found other bytes") from error
        if question:
            yield question
