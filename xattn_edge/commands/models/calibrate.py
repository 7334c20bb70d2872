"""`xattn-edge calibrate`: fits confidences to accuracy."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from xattn_edge.commands.shared.console import command
from xattn_edge.commands.shared.options import Debug, Fallback, Json, Provider, Quiet, Threads, bundle_argument, new_app
from xattn_edge.commands.shared.report import print_report

__all__ = ["app"]

app = new_app()


@app.command()
def calibrate(
    bundle: Annotated[Path, bundle_argument("VQA bundle that chooses among labels.")],
    data: Annotated[str, typer.Option("--data", help="Data set: easy-vqa.")],
    limit: Annotated[int | None, typer.Option("--limit", min=1, help="Use only the first questions.")] = None,
    record: Annotated[bool, typer.Option("--record", help="Write the temperature into the bundle's manifest.")] = False,
    provider: Provider = "cpu",
    fallback: Fallback = False,
    threads: Threads = None,
    as_json: Json = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Fit a temperature so that confidence equals accuracy.

    It is fitted on every other image of the test split, and the calibration error
    is measured on the images between. Answers do not change.

    \b
    Examples:
      xattn-edge calibrate shapes-vqa.xattn --data easy-vqa
      xattn-edge calibrate shapes-vqa.xattn --data easy-vqa --record --json
    """
    with command(as_json=as_json, quiet=quiet, debug=debug) as console:
        from xattn_edge.evaluation.calibration import calibrate as fit
        from xattn_runtime.execution.providers import with_fallback

        if record:
            from xattn_export.bundle.record import check_recordable

            check_recordable(bundle)
        with console.progress() as progress:
            calibration = fit(
                bundle,
                data,
                provider=with_fallback(provider, fallback),
                threads=threads,
                limit=limit,
                progress=progress,
            )
        if record:
            from xattn_export import record_calibration

            record_calibration(bundle, calibration)
        print_report(console, {**calibration.to_dict(), "bundle": str(bundle), "recorded": record})
