"""`xattn-edge verify`: whether a bundle computes on this machine what the trained model computed."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from xattn_edge.commands.shared.console import Console, command
from xattn_edge.commands.shared.options import Debug, Fallback, Json, Provider, Quiet, Threads, bundle_argument, new_app

if TYPE_CHECKING:
    from xattn_export.engines.verify import EngineReport
    from xattn_runtime.verify.golden import VerificationReport

__all__ = ["app"]

app = new_app()


@app.command()
def verify(
    bundle: Annotated[Path, bundle_argument("Bundle to verify.")],
    provider: Provider = "cpu",
    fallback: Fallback = False,
    threads: Threads = None,
    engine: Annotated[
        list[str] | None,
        typer.Option(
            "--engine",
            metavar="ENGINE",
            help="Run each graph in another engine: onnx-reference, openvino, onnxruntime-node, onnxruntime-web.",
        ),
    ] = None,
    node_modules: Annotated[
        Path, typer.Option("--node", help="Folder whose node_modules hold onnxruntime-node or -web.")
    ] = Path(),
    as_json: Json = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Prove that a bundle computes the right answers on this machine.

    Checks its hashes, then its golden inputs on the chosen provider; exits with 1 if they differ.
    With --engine, which can be repeated, each graph in turn runs in that engine instead, while ONNX
    Runtime runs the others.

    \b
    Examples:
      xattn-edge verify shapes-vqa.xattn
      xattn-edge verify shapes-vqa.xattn --provider openvino --json
      xattn-edge verify shapes-vqa.xattn --engine onnx-reference --engine openvino
    """
    with command(as_json=as_json, quiet=quiet, debug=debug) as console:
        if engine:
            _verify_in(console, bundle, engine, node_modules, threads, as_json=as_json)
            return
        from xattn_runtime.execution.providers import with_fallback
        from xattn_runtime.verify.golden import verify_bundle

        report = verify_bundle(bundle, with_fallback(provider, fallback), threads)
        if as_json:
            console.document(report.to_dict())
        else:
            _print(console, report)
        report.raise_if_failed()


def _verify_in(
    console: Console, bundle: Path, engines: list[str], node_modules: Path, threads: int | None, *, as_json: bool
) -> None:
    from xattn_export.engines.verify import verify_in_engine

    reports = [verify_in_engine(bundle, name, node_modules, threads) for name in engines]
    if as_json:
        console.document({"bundle": str(bundle), "engines": [report.to_dict() for report in reports]})
    else:
        _print_engines(console, reports)
    for report in reports:
        report.raise_if_failed()


def _print_engines(console: Console, reports: list[EngineReport]) -> None:
    rows: list[tuple[object, ...]] = [("engine", "graph", "precision", "runs", "relative rms", "texts", "verdict")]
    for report in reports:
        for graph in report.graphs:
            texts = f"{graph.texts[0]} of {graph.texts[1]} same" if graph.texts[1] else "not compared"
            rms = "-" if graph.relative_rms is None else graph.relative_rms
            verdict = "ok" if graph.passed else "FAILED"
            rows.append((report.engine, graph.role, graph.precision, graph.runs, rms, texts, verdict))
    console.table(rows)


def _print(console: Console, report: VerificationReport) -> None:
    rows: list[tuple[object, ...]] = [("golden case", "relative rms", "allowed", "text", "verdict")]
    for case in report.cases:
        measure = case.measure
        text = "not compared" if measure.expected_text is None else "same" if measure.same_text else "differs"
        verdict = "ok" if case.passed else "FAILED"
        rows.append((measure.image, measure.relative_rms, report.tolerance, text, verdict))
    console.table(rows)
    for whole in report.wholes:
        verdict_text = "as the others together" if whole.passed else f"FAILED: {whole.difference}"
        console.line(f"{whole.role}: {whole.cases} cases: {verdict_text}")
