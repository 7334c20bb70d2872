"""`xattn-edge inspect`: what a bundle or graph is made of."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from xattn_edge.commands.shared.console import Console, command
from xattn_edge.commands.shared.input import StandardInput
from xattn_edge.commands.shared.options import Debug, Json, Quiet, bundle_argument, new_app

__all__ = ["app"]

app = new_app()


@app.command(name="inspect")
def inspect_command(
    path: Annotated[
        Path, bundle_argument("Bundle, or one ONNX file; - is a file on standard input.", metavar="BUNDLE|GRAPH.onnx")
    ],
    strict: Annotated[
        bool, typer.Option("--strict", help="Exit with 1 on anything that is not standard ONNX.")
    ] = False,
    target: Annotated[
        str | None,
        typer.Option(
            "--target",
            help="Check whether a bundle would run on raspberry-pi, jetson, android, browser, npu or server-cuda, and "
            "where each graph would; exit with 1 if not.",
        ),
    ] = None,
    as_json: Json = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """List a bundle's operators, opsets and sizes.

    \b
    Examples:
      xattn-edge inspect shapes-vqa.xattn
      xattn-edge inspect model.onnx --strict --json
      xattn-edge inspect shapes-vqa.xattn --target npu
    """
    with command(as_json=as_json, quiet=quiet, debug=debug) as console:
        if target is not None:
            _inspect_for(console, path, target)
            return
        from xattn_runtime.bundle.inspection import inspect_path

        with StandardInput().as_files([path]) as (file,):
            report = inspect_path(file).to_dict()
        if as_json:
            console.document(report)
        else:
            _print(console, report)
        if strict and not report["standard"]:
            console.fail(f"{path}: holds operators outside the standard domain ai.onnx")


def _inspect_for(console: Console, path: Path, name: str) -> None:
    from xattn_export.targets import fit_of, target_of

    report = fit_of(path, target_of(name))
    if console.as_json:
        console.document(report.to_dict())
    else:
        rows: list[tuple[object, ...]] = [("graph", "runs on", "why")]
        for role, fit in report.graphs.items():
            rows.append((role, fit.runs_on or "NOTHING", "; ".join(fit.reasons) or f"all that {fit.runs_on} wants"))
        console.table(rows)
    if not report.runs:
        console.fail(
            f"{path}: would not run on {name} as it should: expected its graphs on {report.provider}; "
            f"export the model again with --target {name}"
        )


def _print(console: Console, report: dict[str, Any]) -> None:
    rows: list[tuple[object, ...]] = [("graph", "opset", "precision", "bytes", "domains", "operators")]
    for role, graph in report["graphs"].items():
        operators = ", ".join(f"{name} {count}" for name, count in sorted(graph["operators"].items()))
        domains = ", ".join(domain or "ai.onnx" for domain in graph["domains"])
        rows.append((role, graph["opset"], graph["precision"], graph["bytes"], domains, operators))
    console.table(rows)
    for role, reason in report["absent"].items():
        console.line(f"no {role}: {reason}")
    console.line("standard operators only" if report["standard"] else "NOT standard")
