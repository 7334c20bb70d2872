"""`xattn-edge quantize`: a bundle to a smaller one."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from xattn_edge.commands._console import command, provenance_command
from xattn_edge.commands._options import Debug, Json, OutputOption, Overwrite, Quiet, new_app
from xattn_edge.commands._report import print_report
from xattn_runtime.errors import UserError

__all__ = ["app"]

app = new_app()


@app.command()
def quantize(
    bundle: Annotated[Path, typer.Argument(metavar="BUNDLE", help="Bundle that `xattn-edge export` wrote.")],
    output: OutputOption,
    mode: Annotated[
        Literal["int8", "int4"],
        typer.Option("--mode", help="int8: products in 8 bits; int4: their weights in 4 bits, for large models."),
    ] = "int8",
    component: Annotated[
        list[str] | None,
        typer.Option("--component", metavar="ROLE=MODE", help="Another mode (int8, int4, fp32) for one graph; repeat."),
    ] = None,
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
      xattn-edge quantize blip.xattn -o blip-small.xattn --mode int8 --component decoder=int4
    """
    with command(as_json=as_json, quiet=quiet, debug=debug, output=output) as console:
        from xattn_export import quantize_bundle

        with console.progress() as progress:
            report = quantize_bundle(
                bundle,
                output,
                mode=mode,
                components=_components(component or []),
                overwrite=overwrite,
                command=provenance_command(),
                progress=progress,
            )
        print_report(console, report.to_dict())


def _components(pairs: list[str]) -> dict[str, Any]:
    """Role → mode, unchecked, of `ROLE=MODE`; UserError where one is not of that form or a role stands twice."""
    found: dict[str, Any] = {}
    for pair in pairs:
        role, equals, mode = pair.partition("=")
        if not (role and equals and mode):
            raise UserError(f"--component: expected ROLE=MODE, such as decoder=int4, found {pair!r}")
        if role in found:
            raise UserError(f"--component: expected each role once, found {role} twice")
        found[role] = mode
    return found
