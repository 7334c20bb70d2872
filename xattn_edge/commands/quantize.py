"""`xattn-edge quantize`: a bundle to a smaller one."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from xattn_edge.commands._console import command, provenance_command
from xattn_edge.commands._options import Debug, Json, OutputOption, Overwrite, Quiet, new_app
from xattn_edge.commands._report import print_report

__all__ = ["app"]

app = new_app()


@app.command()
def quantize(
    bundle: Annotated[Path, typer.Argument(metavar="BUNDLE", help="Bundle that `xattn-edge export` wrote.")],
    output: OutputOption,
    mode: Annotated[
        Literal["int8"], typer.Option("--mode", help="int8: weights ahead, activations at run time.")
    ] = "int8",
    overwrite: Overwrite = False,
    as_json: Json = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Make a bundle smaller and faster.

    It keeps to standard ONNX operators, and what is lost is measured and recorded.

    \b
    Examples:
      xattn-edge quantize shapes-vqa.xattn -o shapes-vqa-int8.xattn --mode int8
    """
    with command(as_json=as_json, quiet=quiet, debug=debug, output=output) as console:
        from xattn_export import quantize_bundle

        with console.progress() as progress:
            report = quantize_bundle(
                bundle, output, mode=mode, overwrite=overwrite, command=provenance_command(), progress=progress
            )
        print_report(console, report.to_dict())
