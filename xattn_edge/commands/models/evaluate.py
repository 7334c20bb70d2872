"""`xattn-edge evaluate`: measures a bundle on a data set."""

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
def evaluate(
    bundle: Annotated[Path, bundle_argument("Bundle to evaluate.")],
    data: Annotated[str, typer.Option("--data", help="Data set; see `xattn-edge data list`.")],
    split: Annotated[str, typer.Option("--split", help="Split of the data set.")] = "test",
    limit: Annotated[int | None, typer.Option("--limit", min=1, help="Evaluate only the first examples.")] = None,
    record: Annotated[bool, typer.Option("--record", help="Write the result into the bundle's manifest.")] = False,
    provider: Provider = "cpu",
    fallback: Fallback = False,
    threads: Threads = None,
    as_json: Json = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Measure the task metric of a bundle on a data set, without torch.

    \b
    Examples:
      xattn-edge evaluate shapes-vqa.xattn --data easy-vqa --split test
      xattn-edge evaluate emoji-caption.xattn --data emoji --limit 500 --json
      xattn-edge evaluate shapes-vqa.xattn --data easy-vqa --record
    """
    with command(as_json=as_json, quiet=quiet, debug=debug) as console:
        from xattn_edge.evaluation import evaluate as evaluate_bundle
        from xattn_runtime.execution.providers import with_fallback

        if record:
            from xattn_export.bundle.record import check_recordable

            check_recordable(bundle)
        with console.progress() as progress:
            report = evaluate_bundle(
                bundle,
                data,
                split,
                provider=with_fallback(provider, fallback),
                threads=threads,
                limit=limit,
                progress=progress,
            )
        values = report.to_dict()
        if record:
            from xattn_export import record_evaluation

            record_evaluation(bundle, {key: value for key, value in values.items() if key != "bundle"})
        print_report(console, values)
