"""`xattn-edge export`: makes a bundle of a checkpoint."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from xattn_edge.commands.shared.console import Console, command, provenance_command
from xattn_edge.commands.shared.options import Debug, Json, OutputOption, Overwrite, Quiet, new_app
from xattn_edge.commands.shared.report import print_report
from xattn_runtime.errors import UserError

__all__ = ["app"]

app = new_app()


@app.command()
def export(
    source: Annotated[
        Path, typer.Argument(metavar="SOURCE", help="Checkpoint folder of `train` or Transformers, or a hub id.")
    ],
    output: OutputOption,
    task: Annotated[
        Literal["caption", "vqa", "retrieval"] | None,
        typer.Option("--task", help="Task to export, for models that can do several, such as GIT."),
    ] = None,
    attention: Annotated[
        Literal["standard", "decomposed"] | None,
        typer.Option(
            "--attention",
            help="standard: the Attention operator; decomposed: MatMul and Softmax, for older devices. "
            "Default: standard.",
        ),
    ] = None,
    opset: Annotated[
        int | None, typer.Option("--opset", min=1, help="Opset of ai.onnx. Default: the oldest that suffices.")
    ] = None,
    target: Annotated[
        str | None,
        typer.Option(
            "--target",
            help="Choose attention, opset, shapes and precision for a device: raspberry-pi, jetson, android, browser, "
            "npu or server-cuda.",
        ),
    ] = None,
    whole: Annotated[
        bool, typer.Option("--whole/--no-whole", help="Add one graph of the whole model: pixels in, words out.")
    ] = True,
    with_attention: Annotated[
        bool, typer.Option("--with-attention", help="Add the graph that --heatmap needs: attention weights.")
    ] = False,
    cache: Annotated[
        Literal["split", "single"] | None,
        typer.Option(
            "--cache",
            help="Cache of the decoder. split: copy only the latest tokens at each step, for long prompts; single: all "
            "in one. Default: split where an image stands in the prompt.",
        ),
    ] = None,
    base: Annotated[
        Path | None,
        typer.Option("--base", help="For an adapter of PEFT: the model it was trained on. They are merged."),
    ] = None,
    overwrite: Overwrite = False,
    as_json: Json = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Export a trained model to a bundle.

    The bundle holds standard ONNX operators only and is compared with the trained
    model. SOURCE is a folder that `xattn-edge train` or Transformers' save_pretrained
    wrote, or the id of such a model on the Hugging Face hub.

    \b
    Examples:
      xattn-edge export checkpoints/shapes-vqa -o shapes-vqa.xattn
      xattn-edge export checkpoints/shapes-vqa -o old.xattn --attention decomposed --opset 18
      xattn-edge export Salesforce/blip-image-captioning-base -o blip.xattn
      xattn-edge export microsoft/git-base-vqav2 -o git.xattn --task vqa
      xattn-edge export my-lora -o tuned.xattn --base blip-image-captioning-base
      xattn-edge export checkpoints/shapes-vqa -o pi.xattn --target raspberry-pi
    """
    with command(as_json=as_json, quiet=quiet, debug=debug, output=output) as console:
        from xattn_export import export_checkpoint

        if target is not None:
            if attention is not None or opset is not None or cache is not None:
                raise UserError("--target: expected no --attention, --opset or --cache beside it, as it chooses them")
            _export_for(
                console,
                source,
                output,
                target,
                task=task,
                with_attention=with_attention,
                base=base,
                overwrite=overwrite,
            )
            return
        with console.progress() as progress:
            report = export_checkpoint(
                source,
                output,
                task=task,
                attention=attention or "standard",
                opset=opset,
                whole=whole,
                with_attention=with_attention,
                cache=cache,
                base=base,
                overwrite=overwrite,
                command=provenance_command(),
                progress=progress,
            )
        print_report(console, report.to_dict())


def _export_for(
    console: Console,
    source: Path,
    output: Path,
    name: str,
    *,
    task: Literal["caption", "vqa", "retrieval"] | None,
    with_attention: bool,
    base: Path | None,
    overwrite: bool,
) -> None:
    from xattn_export.targets import export_for_target, target_of

    target = target_of(name)
    console.note(f"{name}: {target.attention} attention, opset {target.opset}, {target.mode}: {target.why}")
    with console.progress() as progress:
        exported, quantized = export_for_target(
            source,
            output,
            target,
            task=task,
            with_attention=with_attention,
            base=base,
            overwrite=overwrite,
            command=provenance_command(),
            progress=progress,
        )
    print_report(console, {"target": name, "export": exported.to_dict(), "quantize": quantized.to_dict()})
