"""`xattn-edge quantize`: makes a smaller bundle."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from xattn_edge.commands.shared.console import Console, command, provenance_command
from xattn_edge.commands.shared.options import Debug, Json, OutputOption, Overwrite, Quiet, bundle_argument, new_app
from xattn_edge.commands.shared.output import check_writable, write_text
from xattn_edge.commands.shared.report import print_report
from xattn_runtime.errors import UserError

if TYPE_CHECKING:
    from xattn_export.quantize.budget.search import Measured

__all__ = ["app"]

app = new_app()


@app.command()
def quantize(
    bundle: Annotated[Path, bundle_argument("Bundle that `xattn-edge export` wrote.")],
    output: OutputOption,
    mode: Annotated[
        Literal["int8", "int8-static", "int8-weight", "int4", "fp16", "fp32", "auto"],
        typer.Option(
            "--mode",
            help="int8: 8-bit products with ranges computed at run time; int8-static: 8-bit products with calibrated "
            "ranges, for NPUs; int8-weight, int4: 8-bit or 4-bit weights only; fp16: half precision, for GPUs; fp32: "
            "unchanged, for use with --component; auto: search for the best mix within --budget.",
        ),
    ] = "int8",
    component: Annotated[
        list[str] | None,
        typer.Option(
            "--component",
            metavar="ROLE[/LAYER]=MODE",
            help="Use another mode (fp32 too) for one graph or one of its layers. Can be repeated.",
        ),
    ] = None,
    rounding: Annotated[
        Literal["nearest", "fitted", "hqq", "gptq"] | None,
        typer.Option(
            "--rounding",
            help="Method of rounding weights; gptq loses least and takes longest. Default: gptq if --data names "
            "examples, else fitted.",
        ),
    ] = None,
    block: Annotated[
        int,
        typer.Option("--block", help="Weights per scale in int4 and int8-weight: 16, 32, 64 or 128."),
    ] = 32,
    asymmetric: Annotated[
        bool, typer.Option("--asymmetric", help="Store a zero point for each block of int4 and int8-weight.")
    ] = False,
    exact_activations: Annotated[
        bool,
        typer.Option("--exact-activations", help="Keep float32 activations in int4 and int8-weight (slower)."),
    ] = False,
    smooth: Annotated[
        float, typer.Option("--smooth", help="Strength of SmoothQuant in int8: 0 is off, 0.5 is usual. Needs --data.")
    ] = 0.0,
    cross_kv: Annotated[
        Literal["fp32", "fp16", "int8"],
        typer.Option(
            "--cross-kv",
            help="Precision of the cross-attention keys and values. int8 is the fastest and needs --data.",
        ),
    ] = "fp32",
    kv_cache: Annotated[
        Literal["fp32", "fp16", "int8"],
        typer.Option("--kv-cache", help="Precision of the decoder's key/value cache. int8 needs --data."),
    ] = "fp32",
    range_method: Annotated[
        Literal["min-max", "entropy", "percentile"],
        typer.Option("--range", help="Method of choosing activation ranges in int8-static."),
    ] = "min-max",
    percentile: Annotated[
        float, typer.Option("--percentile", help="Percentage of values within the range, for --range percentile.")
    ] = 99.99,
    data: Annotated[
        str | None,
        typer.Option("--data", help="Calibrate on a data set, a folder of images, or golden (the bundle's own cases)."),
    ] = None,
    examples: Annotated[
        int | None,
        typer.Option(
            "--examples", min=1, max=100_000, help="Number of calibration examples. Default: 32; 300 for auto."
        ),
    ] = None,
    budget: Annotated[
        float | None,
        typer.Option("--budget", help="Largest relative loss of the metric, for auto, such as 0.01."),
    ] = None,
    prefer: Annotated[
        Literal["size", "speed", "memory"] | None,
        typer.Option("--prefer", help="What to minimize, for auto. Default: size."),
    ] = None,
    plot: Annotated[
        Path | None,
        typer.Option("--plot", help="Draw the measured mixes into this .svg file, for auto; replace an earlier plot."),
    ] = None,
    overwrite: Overwrite = False,
    as_json: Json = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Quantize a bundle: smaller and faster, with the loss measured.

    The new bundle holds standard ONNX operators only and records its loss.

    \b
    Examples:
      xattn-edge quantize shapes-vqa.xattn -o shapes-vqa-int8.xattn --mode int8
      xattn-edge quantize blip.xattn -o blip-small.xattn --mode int8 --component decoder=int4
      xattn-edge quantize blip.xattn -o blip-gptq.xattn --mode int4 --data photos/
      xattn-edge quantize shapes-vqa.xattn -o small.xattn --mode auto --budget 0.01 --data easy-vqa
    """
    with command(as_json=as_json, quiet=quiet, debug=debug, output=output) as console:
        from xattn_export import QuantizeOptions, quantize_bundle

        options = QuantizeOptions(
            block=block,
            symmetric=not asymmetric,
            rounding=rounding or ("fitted" if data in (None, "golden") else "gptq"),
            exact_activations=exact_activations,
            range_method=range_method,
            percentile=percentile,
            smooth=smooth,
            cross=cross_kv,
            cache=kv_cache,
        )
        if mode == "auto":
            if component:
                raise UserError("--mode auto: expected no --component beside it, as it chooses the modes, found one")
            _search(
                console,
                bundle,
                output,
                options,
                data,
                examples or 300,
                budget,
                prefer or "size",
                plot,
                overwrite=overwrite,
            )
            return
        for option, value in (("--budget", budget), ("--prefer", prefer), ("--plot", plot)):
            if value is not None:
                raise UserError(f"{option}: expected --mode auto beside it, found --mode {mode}")
        with console.progress() as progress:
            report = quantize_bundle(
                bundle,
                output,
                mode=mode,
                components=_components(component or []),
                options=options,
                examples=None if data is None else _examples(bundle, data, examples or 32),
                overwrite=overwrite,
                command=provenance_command(),
                progress=progress,
            )
        print_report(console, report.to_dict())


def _search(
    console: Console,
    source: Path,
    output: Path,
    options: Any,
    data: str | None,
    count: int,
    budget: float | None,
    prefer: Literal["size", "speed", "memory"],
    plot: Path | None,
    *,
    overwrite: bool,
) -> None:
    from xattn_edge.commands.shared.split import TaskSplit
    from xattn_edge.evaluation.samples import halves
    from xattn_export.quantize.budget.plot import frontier_plot
    from xattn_export.quantize.budget.selection import quantize_to_budget
    from xattn_runtime.bundle.folder import open_bundle

    if plot is not None:
        check_writable(plot)
    if data is None or budget is None:
        raise UserError("--mode auto: expected --budget, such as 0.01, and --data to measure losses on; give both")
    bundle = open_bundle(source)
    calibration, unseen = (TaskSplit(samples, bundle) for samples in halves(bundle, data, count))
    with console.progress() as progress:
        report = quantize_to_budget(
            source,
            output,
            calibration,
            unseen,
            budget=budget,
            prefer=prefer,
            options=options,
            overwrite=overwrite,
            command=provenance_command(),
            on_measured=lambda measured: console.note(_measured(measured)),
            progress=progress,
        )
    if plot is not None:
        write_text(plot, frontier_plot(report.measured, report.frontier, budget, report.metric))
    if console.as_json:
        console.document(report.to_dict())
        return
    low, high = report.interval
    console.line(f"{output}: {_measured(report.chosen)}; {report.size_ratio:.2f} of the size")
    console.line(
        f"{report.metric} on {report.unseen}: "
        f"{report.unseen_scores[0]:.4g} → {report.unseen_scores[1]:.4g}, a loss of {report.unseen_loss:.2%} "
        f"(95 %: {low:.2%} to {high:.2%})"
    )
    console.line(f"the frontier, of {len(report.measured)} mixes within a budget of {budget:.2%}:")
    for measured in report.frontier:
        console.line(f"  {_measured(measured)}")


def _measured(measured: Measured) -> str:
    mix = " ".join(f"{name}={mode}" for name, mode in measured.components.items()) or "fp32"
    if measured.failure is not None:
        return f"{mix}: {measured.failure}"
    return (
        f"{mix}: loss {measured.loss:.2%}, {measured.bytes / 1e6:.2f} MB, {measured.time:.2f} of the time, "
        f"{measured.memory_mb:.0f} MB of memory"
    )


def _examples(bundle: Path, data: str, count: int) -> Any:
    from xattn_edge.evaluation.samples import calibration_samples
    from xattn_runtime.bundle.folder import open_bundle

    return calibration_samples(open_bundle(bundle), data, count)


def _components(pairs: list[str]) -> dict[str, Any]:
    """Component → mode, unchecked, of `ROLE=MODE`; UserError where one is not of that form or stands twice."""
    modes: dict[str, Any] = {}
    for pair in pairs:
        role, equals, mode = pair.partition("=")
        if not (role and equals and mode):
            raise UserError(f"--component: expected ROLE=MODE, such as decoder=int4, found {pair!r}")
        if role in modes:
            raise UserError(f"--component: expected each component once, found {role} twice")
        modes[role] = mode
    return modes
