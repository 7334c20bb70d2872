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
        Literal["int8", "int8-static", "int8-weight", "int4", "fp16", "fp32"],
        typer.Option(
            "--mode",
            help="int8: products in 8 bits; int8-static: the same with calibrated ranges, for NPUs; int8-weight, int4: "
            "only the weights in 8 or 4 bits, in blocks; fp16: half precision, for GPUs; fp32: as it is, beside "
            "--component.",
        ),
    ] = "int8",
    component: Annotated[
        list[str] | None,
        typer.Option(
            "--component",
            metavar="ROLE[/LAYER]=MODE",
            help="Another mode (also fp32) for one graph, or for one layer of a graph; repeat.",
        ),
    ] = None,
    rounding: Annotated[
        Literal["nearest", "fitted", "hqq", "gptq"],
        typer.Option("--rounding", help="How weights are rounded; gptq is the best and needs --data."),
    ] = "fitted",
    block: Annotated[
        int, typer.Option("--block", help="Weights that share a scale in int4 and int8-weight: 16, 32, 64 or 128.")
    ] = 32,
    asymmetric: Annotated[
        bool, typer.Option("--asymmetric", help="Give the blocks of int4 and int8-weight zero points, too.")
    ] = False,
    exact_activations: Annotated[
        bool,
        typer.Option("--exact-activations", help="Multiply the weights of int4 and int8-weight with float32: slower."),
    ] = False,
    smooth: Annotated[
        float, typer.Option("--smooth", help="SmoothQuant for int8: 0.5 is usual; 0 is none. Needs --data.")
    ] = 0.0,
    cross_kv: Annotated[
        Literal["fp32", "fp16", "int8"],
        typer.Option(
            "--cross-kv",
            help="Keys and values of cross-attention, from graph to graph; int8 is the fastest and needs --data.",
        ),
    ] = "fp32",
    kv_cache: Annotated[
        Literal["fp32", "fp16", "int8"],
        typer.Option("--kv-cache", help="Keys and values of the decoder's cache; int8 needs --data."),
    ] = "fp32",
    range_method: Annotated[
        Literal["min-max", "entropy", "percentile"],
        typer.Option("--range", help="How int8-static finds the range of activations."),
    ] = "min-max",
    percentile: Annotated[
        float, typer.Option("--percentile", help="With --range percentile: the share of values within the range.")
    ] = 99.99,
    data: Annotated[
        str | None,
        typer.Option("--data", help="What to calibrate on: a data set, a folder of pictures, or golden."),
    ] = None,
    examples: Annotated[int, typer.Option("--examples", min=1, help="How many examples to calibrate on.")] = 32,
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
      xattn-edge quantize blip.xattn -o blip-gptq.xattn --mode int4 --rounding gptq --data pictures/
    """
    with command(as_json=as_json, quiet=quiet, debug=debug, output=output) as console:
        from xattn_export import QuantizeOptions, quantize_bundle

        options = QuantizeOptions(
            block=block,
            symmetric=not asymmetric,
            rounding=rounding,
            exact_activations=exact_activations,
            range_method=range_method,
            percentile=percentile,
            smooth=smooth,
            cross=cross_kv,
            cache=kv_cache,
        )
        with console.progress() as progress:
            report = quantize_bundle(
                bundle,
                output,
                mode=mode,
                components=_components(component or []),
                options=options,
                examples=None if data is None else _examples(bundle, data, examples),
                overwrite=overwrite,
                command=provenance_command(),
                progress=progress,
            )
        print_report(console, report.to_dict())


def _examples(bundle: Path, data: str, count: int) -> Any:
    from xattn_edge.evaluation.samples import calibration_samples
    from xattn_runtime.bundle import open_bundle

    return calibration_samples(open_bundle(bundle), data, count)


def _components(pairs: list[str]) -> dict[str, Any]:
    """Component → mode, unchecked, of `ROLE=MODE`; UserError where one is not of that form or stands twice."""
    found: dict[str, Any] = {}
    for pair in pairs:
        role, equals, mode = pair.partition("=")
        if not (role and equals and mode):
            raise UserError(f"--component: expected ROLE=MODE, such as decoder=int4, found {pair!r}")
        if role in found:
            raise UserError(f"--component: expected each component once, found {role} twice")
        found[role] = mode
    return found
