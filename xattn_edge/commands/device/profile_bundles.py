"""`xattn-edge profile`: how fast bundles are, what limits them, and what memory they take."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from xattn_edge.commands.shared.console import command
from xattn_edge.commands.shared.input import StandardInput
from xattn_edge.commands.shared.options import Debug, Json, Quiet, bundle_argument, find_bundles, new_app
from xattn_runtime.errors import UserError, VerificationError

if TYPE_CHECKING:
    from xattn_runtime.profiling import ProfileCombination
    from xattn_runtime.profiling.regression_gate import Change

__all__ = ["app"]

app = new_app()

# Two processes of the same differ, which none of them can show.
_PROCESSES_OF_A_GATE = 4


@app.command()
def profile(
    bundles: Annotated[
        list[Path],
        bundle_argument("Bundles to profile; they take turns.", metavar="BUNDLE..."),
    ],
    providers: Annotated[
        list[str] | None, typer.Option("--provider", help="Execution provider; repeat for several.  [default: cpu]")
    ] = None,
    threads: Annotated[
        list[str] | None,
        typer.Option("--threads", help="Threads within an operator; repeat, or write 1,2, for several."),
    ] = None,
    batches: Annotated[
        list[str] | None, typer.Option("--batch", help="Images to caption together; repeat, or write 1,2, for several.")
    ] = None,
    images: Annotated[
        list[Path] | None,
        typer.Option(
            "--image",
            help="Use this image in place of the golden ones, - for one on standard input; repeat for several.",
        ),
    ] = None,
    runs: Annotated[
        int | None,
        typer.Option("--runs", min=1, help="Measure this many passes. Default: as many as --precision needs."),
    ] = None,
    time_budget: Annotated[
        float, typer.Option("--time-budget", help="Without --runs: measure for at most this many seconds in all.")
    ] = 60.0,
    precision: Annotated[
        float, typer.Option("--precision", help="Without --runs: stop when the medians' intervals are this narrow.")
    ] = 0.02,
    processes: Annotated[
        int | None,
        typer.Option(
            "--processes", min=1, help="Measure each in this many processes, in turn.  [default: 1; with --against 4]"
        ),
    ] = None,
    time_limit: Annotated[
        float, typer.Option("--time-limit", help="Stop a process that does not answer for this many seconds.")
    ] = 300.0,
    against: Annotated[
        Path | None,
        typer.Option(
            "--against",
            callback=find_bundles,
            help="Compare with an earlier --json document, or with an older bundle; exit with 1 if slower.",
        ),
    ] = None,
    tolerance: Annotated[
        float, typer.Option("--tolerance", min=0.0, help="With --against: allow a stage to be slower by this share.")
    ] = 0.05,
    trace: Annotated[
        Path | None,
        typer.Option(
            "--trace", help="Write every node's times to this .json, for ui.perfetto.dev; replace an earlier one."
        ),
    ] = None,
    html: Annotated[
        Path | None,
        typer.Option(
            "--html", help="Write a page with plots to this file, or replace an earlier page; needs the [report] extra."
        ),
    ] = None,
    host: Annotated[
        str | None, typer.Option("--host", help="Measure on a remote machine, named as for ssh: user@device.")
    ] = None,
    host_python: Annotated[
        str, typer.Option("--host-python", help="With --host: the remote Python, which has the runtime's packages.")
    ] = "python3",
    host_ssh: Annotated[
        str, typer.Option("--ssh", help="With --host: the command that connects, such as 'ssh -p 2222 -i KEY'.")
    ] = "ssh",
    as_json: Json = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Time the stages of bundles, and show what limits them.

    Each bundle runs in a process of its own, with each provider and number of threads, and all take turns; its memory
    is measured too. What a device cannot run is reported, and the rest is measured. With --host all of it happens on a
    remote machine, to which the runtime and the bundles are copied for as long as it takes.

    \b
    Examples:
      xattn-edge profile shapes-vqa.xattn
      xattn-edge profile fp32.xattn int8.xattn --threads 1,2 --time-budget 30 --html profile.html
      xattn-edge profile int8.xattn --processes 4 --json > before.json
      xattn-edge profile int8.xattn --provider cpu --provider cuda --trace nodes.json
      xattn-edge profile int8.xattn --against before.json --tolerance 0.05
      xattn-edge profile int8.xattn --against older/int8.xattn
      xattn-edge profile int8.xattn --host pi@raspberrypi --host-python ~/venv/bin/python --html profile.html
    """
    with command(as_json=as_json, quiet=quiet, debug=debug) as console:
        from xattn_edge.commands.shared.profile_tables import print_changes, print_profile
        from xattn_runtime.profiling import ProfileOptions, profile_matrix, read_document
        from xattn_runtime.profiling.regression_gate import compare_bundles, compare_documents
        from xattn_runtime.profiling.remote.client import Host, profile_on_host

        earlier = against if against is not None and against.is_dir() else None
        old = None if against is None or earlier is not None else read_document(against)
        if earlier in bundles:
            raise UserError(f"--against: expected an older bundle, found {earlier}, which is to be profiled itself")
        _check_outputs(html, trace)
        traces: dict[ProfileCombination, Any] | None = None if trace is None else {}
        counts: list[int | None] = [*_numbers("--threads", threads or [])] or [None]
        together = _numbers("--batch", batches or []) or [1]
        with StandardInput().as_files(images or []) as files, console.progress() as progress:
            options = ProfileOptions(
                runs,
                time_budget,
                precision,
                time_limit,
                [str(file) for file in files],
                processes=processes or (1 if against is None else _PROCESSES_OF_A_GATE),
            )
            what = (
                [*bundles, *filter(None, [earlier])],
                providers or ["cpu"],
                counts,
                together,
                options,
                progress,
                traces,
            )
            if host is None:
                values = profile_matrix(*what).to_dict()
            else:
                values = profile_on_host(Host(host, host_python, host_ssh), *what)
        changes: list[Change] = []
        incomparable: UserError | None = None
        if against is not None:
            try:
                changes = (
                    compare_bundles(values, str(earlier), tolerance)
                    if old is None
                    else compare_documents(old, values, tolerance)
                )
            except UserError as error:  # said when what was measured has been shown
                incomparable = error
        if trace is not None:
            _write_trace(trace, traces or {})
        if against is not None:
            values["against"] = [change.to_dict() for change in changes]
        if html is not None:
            _write_page(html, values)
        if as_json:
            console.document(values)
        else:
            print_profile(console, values)
            print_changes(console, changes)
        if incomparable is not None:
            raise incomparable
        _raise_what_failed(values, changes)


def _check_outputs(html: Path | None, trace: Path | None) -> None:
    """What would be in vain after minutes of measuring."""
    from xattn_edge.commands.shared.output import check_writable

    for path in filter(None, (html, trace)):
        check_writable(path)
    if html is not None:
        from xattn_edge.report import require_plots

        require_plots()


def _numbers(option: str, texts: list[str]) -> list[int]:
    """Whole numbers from `["1,2", "4"]`."""
    parts = [part.strip() for text in texts for part in text.split(",")]
    for part in parts:
        if not part.isascii() or not part.isdigit() or int(part) < 1:
            raise typer.BadParameter(f"{option}: expected whole numbers of at least 1, found {part!r}")
    return [int(part) for part in parts]


def _write_trace(path: Path, traces: dict[ProfileCombination, Any]) -> None:
    from xattn_edge.commands.shared.output import write_text
    from xattn_runtime.profiling import trace_document

    several = len(traces) > 1
    events = {
        f"{combination.bundle}, {combination.provider}, {combination.threads} threads: {role}"
        if several
        else role: graph_events
        for combination, roles in traces.items()
        for role, graph_events in roles.items()
    }
    write_text(path, json.dumps(trace_document(events)))


def _write_page(path: Path, values: dict[str, Any]) -> None:
    from xattn_edge.commands.shared.output import write_text
    from xattn_edge.report import profile_page

    write_text(path, profile_page(values))


def _raise_what_failed(values: dict[str, Any], changes: list[Change]) -> None:
    if values["interrupted"]:
        raise KeyboardInterrupt
    if values["failures"]:
        first = values["failures"][0]
        raise (UserError if first["user_can_mend"] else VerificationError)(first["message"])
    worse = [change for change in changes if change.verdict == "worse"]
    if worse:
        most = max(worse, key=lambda change: change.shift.share)
        raise VerificationError(
            f"{most.name}: expected {most.stage} to take no longer than before, found {100 * most.shift.share:+.1f} %; "
            "see the table, or raise --tolerance"
        )
