"""`xattn-edge vqa`: an image and questions about it to answers."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from xattn_edge.commands.answers.seen import Times, described, seen_in
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
from xattn_runtime.generate.options import DecodingOptions

if TYPE_CHECKING:
    from xattn_runtime.tasks import Answer

__all__ = ["app"]

app = new_app()


@app.command()
@takes_decoding_options(names={"top_k": "--sample-top-k"})
def vqa(
    image: Annotated[
        Path,
        typer.Argument(
            metavar="IMAGE", help="An image: PNG, JPEG, WebP, GIF or BMP; or .npz regions; - is standard input."
        ),
    ],
    questions: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="QUESTION...",
            help="Questions about it, each quoted; - reads them from standard input, one per line. "
            "Beside --question, further images.",
        ),
    ] = None,
    asked: Annotated[
        list[str] | None,
        typer.Option("--question", help="A question about several images, or a video; repeat for several questions."),
    ] = None,
    times: Times = None,
    bundle: BundleOption = None,
    provider: Provider = "cpu",
    fallback: Fallback = False,
    threads: Threads = None,
    listed: Annotated[int, typer.Option("--top-k", min=1, help="List this many answers with --json.")] = 5,
    *,
    decoding: DecodingOptions,
    answers: Annotated[
        str | None,
        typer.Option(
            "--answers",
            help="Choose among these answers alone: a file with one per line, - for standard input, or a,b,c.",
        ),
    ] = None,
    heatmap: Heatmap = None,
    layer: HeatmapLayer = None,
    head: HeatmapHead = None,
    as_json: Json = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Answer questions about an image.

    The image is encoded once for all of them. With several questions,
    --json prints {"image", "results": [...], "provider", "bundle"}.
    Several images are for models that were trained on them, such as SmolVLM.
    The options of decoding are for bundles that generate their answers.
    A bundle of LXMERT or VisualBERT takes an .npz in place of the image:
    `features` [regions, width], and for LXMERT `boxes` [regions, 4].

    \b
    Examples:
      xattn-edge vqa photo.png "what color is the shape?"
      xattn-edge vqa photo.png "is there a circle?" "what shape is it?" --json
      xattn-edge vqa photo.png "what color is it?" --answers red,green,blue
      xattn-edge vqa photo.png "what is it?" --bundle blip-vqa.xattn --beams 4 --n-best 4
      xattn-edge vqa before.png after.png --question "what changed?" --bundle smolvlm.xattn
      xattn-edge vqa 0.png 1.png 2.png --times 0,1,2 --question "what happens?" --bundle smolvlm2.xattn
      xattn-edge vqa regions.npz "what is on the table?" --bundle lxmert.xattn
    """
    with command(as_json=as_json, quiet=quiet, debug=debug) as console:
        from xattn_edge.commands.shared.output import check_not_input
        from xattn_runtime.bundle.folder import default_bundle
        from xattn_runtime.errors import UserError
        from xattn_runtime.execution.providers import with_fallback
        from xattn_runtime.loader import load
        from xattn_runtime.tasks.shared.heatmap import check_heatmap

        given = StandardInput()
        images, questions = _images_and_questions(image, questions or [], asked or [])
        if [*map(str, images), *questions, answers].count(STANDARD_STREAM) > 1:
            raise UserError("-: expected it once, as standard input is read once, found it twice; name a file")
        if STANDARD_STREAM in questions:
            listed_questions = given.lines(Path(STANDARD_STREAM), "question")
            questions = [each for one in questions for each in (listed_questions if one == STANDARD_STREAM else [one])]
        if heatmap is not None:
            if len(questions) > 1:
                raise UserError("heatmap: expected one question, found several; ask one at a time")
            if len(images) > 1 or times is not None:
                raise UserError("heatmap: expected one image, found several; ask about one at a time")
            check_heatmap(heatmap)
            check_not_input(heatmap, images)
        task = load(bundle or default_bundle("vqa"), with_fallback(provider, fallback), threads, task="vqa")
        # A single question takes the image itself, so that its times are those of the whole way.
        source = seen_in(images, times, given)
        seen = source if len(questions) == 1 else task.encode(source)
        among = None if answers is None else _answers(answers, given)
        results = []
        for question, answer in console.each(
            questions, lambda question: task.ask(seen, question, listed, answers=among, options=decoding)
        ):
            _warn_of_unknown_words(console, answer)
            if not as_json:
                for text in _texts(console, answer, decoding.n_best):
                    console.line(text if len(questions) == 1 else f"{question}: {text}")
            results.append({"question": question, **answer.to_dict()})
        if as_json and results:
            document = results[0] if len(questions) == 1 else {"results": results}
            how = {"provider": task.settings.name, "bundle": str(task.bundle.path)}
            console.document({**described(images, times), **document, **how})
        if heatmap is not None and not console.exit_code:
            draw_heatmap(console, heatmap, lambda: task.attention(given.file(image), questions[0]), layer, head)


def _images_and_questions(image: Path, others: list[str], asked: list[str]) -> tuple[list[Path], list[str]]:
    """The images and the questions: what follows the first image is further images where questions are options."""
    from xattn_runtime.errors import UserError

    if asked:
        return [image, *map(Path, others)], asked
    if not others:
        raise UserError("question: expected one or more, found none; write them after the image, each quoted")
    return [image], others


def _answers(text: str, given: StandardInput) -> list[str]:
    """The lines of a file that are not blank, or what commas part."""
    from xattn_runtime.errors import UserError

    if not text.strip():
        raise UserError("answers: expected a file or a list, found nothing")
    try:
        is_file = text == STANDARD_STREAM or Path(text).is_file()
    except OSError:  # a list too long for a path
        is_file = False
    if not is_file and "," not in text and Path(text).suffix == ".txt":
        raise UserError(f"answers: expected a file or a list, found no file {text}; check the path")
    parts = given.lines(Path(text), "answer") if is_file else text.split(",")
    return [part.strip() for part in parts if part.strip()]


def _texts(console: Console, answer: Answer, n_best: int) -> list[str]:
    """The answer, or the best ones where several were asked for; with their confidence for people."""
    answers = answer.top if n_best > 1 else ((answer.answer, answer.confidence),)
    return [f"{answer}  ({confidence:.1%})" if console.is_terminal else answer for answer, confidence in answers]


def _warn_of_unknown_words(console: Console, answer: Answer) -> None:
    if answer.unknown_words:
        words = ", ".join(repr(word) for word in answer.unknown_words)
        console.warn(f"the model does not know {words}; the answer may not fit the question")
