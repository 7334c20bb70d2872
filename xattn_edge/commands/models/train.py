"""`xattn-edge train`: trains a model into a checkpoint."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from xattn_edge.commands.shared.console import Console, command
from xattn_edge.commands.shared.options import Debug, Json, OutputOption, Overwrite, Quiet, new_app
from xattn_edge.commands.shared.report import print_report

if TYPE_CHECKING:
    from collections.abc import Callable

    from xattn_edge.training import TrainProgress
    from xattn_runtime.progress import Progress

__all__ = ["app"]

app = new_app()


@app.command()
def train(
    task: Annotated[
        Literal["vqa", "caption", "retrieval", "sentiment"],
        typer.Argument(metavar="TASK", help="vqa, caption, retrieval or sentiment."),
    ],
    output: OutputOption,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Seed for weights, order and augmentation.")] = 0,
    steps: Annotated[
        int | None, typer.Option("--steps", min=1, help="Training steps. Default: those of the recipe.")
    ] = None,
    text_encoder: Annotated[
        Literal["lstm", "transformer"] | None, typer.Option("--text-encoder", help="Encoder of the question (vqa).")
    ] = None,
    mechanism: Annotated[
        str | None,
        typer.Option("--mechanism", help="Mechanism between text and image (vqa; caption has one)."),
    ] = None,
    similarity: Annotated[
        str | None,
        typer.Option("--similarity", help="dot, scaled_dot, cosine or additive (vqa, caption)."),
    ] = None,
    weighting: Annotated[str | None, typer.Option("--weighting", help="soft or hard (vqa, caption).")] = None,
    fusion: Annotated[
        str | None,
        typer.Option("--fusion", help="Fusion of text and image (vqa, caption); see docs/mechanisms.md."),
    ] = None,
    hops: Annotated[int | None, typer.Option("--hops", min=1, max=64, help="Hops, for --mechanism multi_hop.")] = None,
    layers: Annotated[
        int | None, typer.Option("--layers", min=1, max=64, help="Number of cross-modal layers (vqa, caption).")
    ] = None,
    eye: Annotated[
        Path | None,
        typer.Option("--eye", help="Caption checkpoint to take the image encoder from (retrieval)."),
    ] = None,
    threads: Annotated[
        int | None,
        typer.Option("--threads", min=1, help="Threads within an operator. Default: all cores but one."),
    ] = None,
    overwrite: Overwrite = False,
    as_json: Json = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Train a model and report its accuracy on the held-out split.

    Training resumes from an unfinished checkpoint at the output.

    \b
    Examples:
      xattn-edge train vqa -o checkpoints/shapes-vqa
      xattn-edge train caption -o checkpoints/emoji-caption --seed 1
      xattn-edge train retrieval -o checkpoints/emoji-retrieval --eye checkpoints/emoji-caption
      xattn-edge train vqa -o runs/hops --mechanism multi_hop --hops 3
      xattn-edge train caption -o runs/hard --weighting hard --fusion dynamic
    """
    with command(as_json=as_json, quiet=quiet, debug=debug, output=output) as console:
        from xattn_edge.training import Combination
        from xattn_edge.training import train as train_model

        parts = {"mechanism": mechanism, "similarity": similarity, "weighting": weighting, "fusion": fusion}
        chosen: dict[str, Any] = {
            name: part for name, part in {**parts, "hops": hops, "layers": layers}.items() if part is not None
        }

        with console.progress() as progress:
            report = train_model(
                task,
                output,
                seed=seed,
                steps=steps,
                overwrite=overwrite,
                threads=threads,
                eye=eye,
                text_encoder=text_encoder,
                combination=Combination(**chosen) if chosen else None,
                progress=_shown(console, progress),
            )
        print_report(console, report.to_dict())


def _shown(console: Console, progress: Progress) -> Callable[[TrainProgress], None]:
    """A callback that shows messages as notes and steps on the progress bar."""

    def show(state: TrainProgress) -> None:
        if state.message:
            console.note(state.message)
        loss = "" if state.loss is None else f", loss {state.loss:.4f}"
        what = state.message or f"step {state.step} of {state.total_steps}{loss}"
        progress(what, state.step / max(state.total_steps, 1))

    return show
