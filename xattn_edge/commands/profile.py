"""`xattn-edge profile`: how fast bundles are here, and what memory they take."""

from __future__ import annotations

from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from xattn_edge.commands._console import Console, command
from xattn_edge.commands._options import Debug, Json, Quiet, new_app

if TYPE_CHECKING:
    from xattn_runtime.profile import ProfileReport

__all__ = ["app"]

app = new_app()


@app.command()
def profile(
    bundles: Annotated[list[Path], typer.Argument(metavar="BUNDLE...", help="Bundles to profile, one after another.")],
    providers: Annotated[
        list[str] | None, typer.Option("--provider", help="Execution provider; repeat it for several.  [default: cpu]")
    ] = None,
    threads: Annotated[
        list[str] | None,
        typer.Option("--threads", help="Threads within an operator; repeat it, or write 1,2, for several."),
    ] = None,
    runs: Annotated[int, typer.Option("--runs", min=1, help="Measured runs of each.")] = 20,
    as_json: Json = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Time the stages of bundles and measure their memory.

    Each bundle runs in a process of its own, with each provider and number of threads.

    \b
    Examples:
      xattn-edge profile shapes-vqa.xattn
      xattn-edge profile fp32.xattn int8.xattn --threads 1,2 --runs 50 --json
    """
    with command(as_json=as_json, quiet=quiet, debug=debug) as console:
        from xattn_runtime.profile import profile_in_process

        combinations = list(product(bundles, providers or ["cpu"], _thread_counts(threads or [])))
        reports = []
        with console.progress() as progress:
            for number, (bundle, provider, count) in enumerate(combinations):

                def show(done: int, all_runs: int, number: int = number, bundle: Path = bundle) -> None:
                    progress(f"profile {bundle}", (number + done / all_runs) / len(combinations))

                reports.append(profile_in_process(bundle, provider, count, runs, progress=show))
        if as_json:
            console.document({"profiles": [report.to_dict() for report in reports]})
        else:
            _print(console, reports)


def _thread_counts(texts: list[str]) -> list[int | None]:
    """Numbers of threads from `["1,2", "4"]`; none means the default."""
    parts = [part.strip() for text in texts for part in text.split(",")]
    for part in parts:
        if not part.isascii() or not part.isdigit() or int(part) < 1:
            raise typer.BadParameter(f"--threads: expected whole numbers of at least 1, found {part!r}")
    return [int(part) for part in parts] or [None]


def _print(console: Console, reports: list[ProfileReport]) -> None:
    header = ("bundle", "provider", "threads", "load ms", "stage", "p50 ms", "p90 ms", "p99 ms", "tokens/s", "peak MB")
    rows: list[tuple[object, ...]] = [header]
    for report in reports:
        what = (report.bundle, report.provider, report.threads, report.load_ms)
        speed = report.tokens_per_second or "-"
        peak_bytes = report.peak_memory.bytes
        peak = "-" if peak_bytes is None else peak_bytes / 1e6
        for stage, timing in report.stages.items():
            times = (timing.p50_ms, timing.p90_ms, timing.p99_ms)
            rows.append((*what, stage, *times, speed, peak))
    console.table(rows)
