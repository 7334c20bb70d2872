"""`xattn-edge verify`: whether a bundle computes here what the trained model computed."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from xattn_edge.commands._console import Console, command
from xattn_edge.commands._options import Debug, Fallback, Json, Provider, Quiet, Threads, new_app

if TYPE_CHECKING:
    from xattn_runtime.verify import VerificationReport

__all__ = ["app"]

app = new_app()


@app.command()
def verify(
    bundle: Annotated[Path, typer.Argument(metavar="BUNDLE", help="Bundle to verify.")],
    provider: Provider = "cpu",
    fallback: Fallback = False,
    threads: Threads = None,
    as_json: Json = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Prove that a bundle computes the right thing here.

    Checks its hashes, then its golden inputs on the chosen provider; exits with 1 if they differ.

    \b
    Examples:
      xattn-edge verify shapes-vqa.xattn
      xattn-edge verify shapes-vqa.xattn --provider openvino --json
    """
    with command(as_json=as_json, quiet=quiet, debug=debug) as console:
        from xattn_runtime.providers import with_fallback
        from xattn_runtime.verify import verify_bundle

        report = verify_bundle(bundle, with_fallback(provider, fallback), threads)
        if as_json:
            console.document(report.to_dict())
        else:
            _print(console, report)
        report.raise_if_failed()


def _print(console: Console, report: VerificationReport) -> None:
    rows: list[tuple[object, ...]] = [("golden case", "relative rms", "allowed", "text", "verdict")]
    for case in report.cases:
        measure = case.measure
        text = "not compared" if measure.expected_text is None else "same" if measure.same_text else "differs"
        verdict = "ok" if case.passed else "FAILED"
        rows.append((measure.image, measure.relative_rms, report.tolerance, text, verdict))
    console.table(rows)
