"""`xattn-edge profile`: how fast bundles are here, what limits them, and what memory they take."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from xattn_edge.commands._console import Console, command
from xattn_edge.commands._options import Debug, Json, Quiet, new_app
from xattn_runtime.errors import UserError, VerificationError

if TYPE_CHECKING:
    from xattn_runtime.profile import Combination, Profile, ProfileDocument
    from xattn_runtime.profile.against import Change

__all__ = ["app"]

app = new_app()

_LONGEST_LAYERS = 5


@app.command()
def profile(
    bundles: Annotated[list[Path], typer.Argument(metavar="BUNDLE...", help="Bundles to profile, all taking turns.")],
    providers: Annotated[
        list[str] | None, typer.Option("--provider", help="Execution provider; repeat it for several.  [default: cpu]")
    ] = None,
    threads: Annotated[
        list[str] | None,
        typer.Option("--threads", help="Threads within an operator; repeat it, or write 1,2, for several."),
    ] = None,
    batches: Annotated[
        list[str] | None, typer.Option("--batch", help="Pictures captioned together; repeat it, or write 1,2.")
    ] = None,
    images: Annotated[
        list[Path] | None, typer.Option("--image", help="A picture to use in place of the golden ones; repeat it.")
    ] = None,
    runs: Annotated[
        int | None, typer.Option("--runs", min=1, help="Measured passes of each; without it, as many as it takes.")
    ] = None,
    time_budget: Annotated[
        float, typer.Option("--time-budget", help="Without --runs: seconds of measuring, of all together.")
    ] = 60.0,
    precision: Annotated[
        float, typer.Option("--precision", help="Without --runs: how narrow the medians' intervals are to be.")
    ] = 0.02,
    time_limit: Annotated[
        float, typer.Option("--time-limit", help="Seconds after which a process that does not answer is ended.")
    ] = 300.0,
    against: Annotated[
        Path | None, typer.Option("--against", help="What --json wrote before: exit with 1 if a stage got slower.")
    ] = None,
    tolerance: Annotated[
        float, typer.Option("--tolerance", help="With --against: the share by which a stage may be slower.")
    ] = 0.05,
    trace: Annotated[
        Path | None, typer.Option("--trace", help="Write every node's times into this .json, for ui.perfetto.dev.")
    ] = None,
    html: Annotated[
        Path | None, typer.Option("--html", help="Write a page with plots there; needs the [report] extra.")
    ] = None,
    as_json: Json = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Time the stages of bundles, and say what limits them.

    Each bundle runs in a process of its own, with each provider and number of threads, and all take turns; its memory
    is measured too. What a device cannot run is told, and the rest measured.

    \b
    Examples:
      xattn-edge profile shapes-vqa.xattn
      xattn-edge profile fp32.xattn int8.xattn --threads 1,2 --time-budget 30 --json > before.json
      xattn-edge profile int8.xattn --provider cpu --provider cuda --trace nodes.json
      xattn-edge profile int8.xattn --against before.json --tolerance 0.05 --html profile.html
    """
    with command(as_json=as_json, quiet=quiet, debug=debug) as console:
        from xattn_runtime.profile import ProfileOptions, profile_matrix, read_document
        from xattn_runtime.profile.against import compare_documents

        old = None if against is None else read_document(against)
        traces: dict[Combination, Any] = {}
        options = ProfileOptions(runs, time_budget, precision, time_limit, [str(image) for image in images or []])
        with console.progress() as progress:
            document = profile_matrix(
                bundles,
                providers or ["cpu"],
                _numbers("--threads", threads or []) or [None],
                _numbers("--batch", batches or []) or [1],
                options,
                progress,
                traces,
            )
        changes = [] if old is None else compare_documents(old, document.to_dict(), tolerance)
        if trace is not None:
            _write_trace(trace, traces)
        values = document.to_dict()
        if old is not None:
            values["against"] = [change.to_dict() for change in changes]
        if html is not None:
            _write_page(html, values)
        if as_json:
            console.document(values)
        else:
            _print(console, document)
            _print_changes(console, changes)
        _raise_what_failed(document, changes)


def _numbers(option: str, texts: list[str]) -> list[int]:
    """Whole numbers from `["1,2", "4"]`."""
    parts = [part.strip() for text in texts for part in text.split(",")]
    for part in parts:
        if not part.isascii() or not part.isdigit() or int(part) < 1:
            raise typer.BadParameter(f"{option}: expected whole numbers of at least 1, found {part!r}")
    return [int(part) for part in parts]


def _write_trace(path: Path, traces: dict[Combination, Any]) -> None:
    from xattn_edge.commands._output import write_text
    from xattn_runtime.profile import trace_document

    several = len(traces) > 1
    events = {
        f"{combination.bundle}, {combination.provider}, {combination.threads} threads: {role}"
        if several
        else role: found
        for combination, roles in traces.items()
        for role, found in roles.items()
    }
    write_text(path, json.dumps(trace_document(events)))


def _write_page(path: Path, values: dict[str, Any]) -> None:
    from xattn_edge.commands._output import write_text
    from xattn_edge.report import profile_page

    write_text(path, profile_page(values))


def _print(console: Console, document: ProfileDocument) -> None:
    for failure in document.failures[1:]:
        console.note(f"not measured: {failure.message}")
    if not document.profiles:
        return
    header = (
        "bundle",
        "provider",
        "threads",
        "stage",
        "p50 ms",
        "95 %",
        "p90 ms",
        "p99 ms",
        "floor ms",
        "×",
        "bound by",
    )
    rows: list[tuple[object, ...]] = [header]
    for profile in document.profiles:
        for stage, timing in profile.stages.items():
            floor = profile.floors.get(stage)
            limit = ("-", "-", "-") if floor is None else (floor.ms, round(floor.times, 2), floor.bound)
            times = (timing.p50.ms, _interval(timing.p50.low_ms, timing.p50.high_ms), timing.p90.ms, timing.p99.ms)
            rows.append((profile.bundle, profile.provider, _count(profile), stage, *times, *limit))
    console.table(rows)
    console.table([_SUMMARY, *map(_summary, document.profiles)])
    for profile in document.profiles:
        for graph in profile.graphs:
            longest = list(graph.layers.items())[:_LONGEST_LAYERS]
            layers = ", ".join(f"{name or '(no layer)'} {ms:.3g}" for name, ms in longest)
            console.note(f"{profile.bundle} {graph.role}: {graph.ms:.3g} ms a run, the most in: {layers}")
    if document.energy_absent:
        console.note(f"energy: absent: {document.energy_absent}")


_SUMMARY = (
    "bundle",
    "provider",
    "threads",
    "passes",
    "load cold ms",
    "warm ms",
    "tokens/s",
    "CPU ms",
    "J",
    "peak MB",
    "now MB",
    "bundle MB",
)


def _summary(profile: Profile) -> tuple[object, ...]:
    memory = ("-" if size is None else size / 1e6 for size in (profile.peak_bytes, profile.steady_bytes))
    return (
        profile.bundle,
        profile.provider,
        _count(profile),
        profile.passes,
        profile.load_cold_ms,
        profile.load_warm_ms,
        profile.tokens_per_second or "-",
        profile.cpu_ms,
        "-" if profile.energy_j is None else profile.energy_j,
        *memory,
        profile.bundle_bytes / 1e6,
    )


def _count(profile: Profile) -> str:
    return str(profile.threads) if profile.batch == 1 else f"{profile.threads}, batch {profile.batch}"


def _interval(low: float | None, high: float | None) -> str:
    return "-" if low is None or high is None else f"{low:.3g} to {high:.3g}"


def _print_changes(console: Console, changes: list[Change]) -> None:
    if not changes:
        return
    header = ("model", "provider", "threads", "stage", "before ms", "now ms", "change", "95 %", "seen from", "verdict")
    rows: list[tuple[object, ...]] = [header]
    for change in changes:
        shift = change.shift
        interval = f"{100 * shift.low:+.1f} to {100 * shift.high:+.1f} %"
        which = (change.name, change.provider, change.threads, change.stage)
        found = (f"{100 * shift.share:+.1f} %", interval, f"{100 * shift.detectable:.1f} %", change.verdict)
        rows.append((*which, change.before_ms, change.after_ms, *found))
    console.table(rows)


def _raise_what_failed(document: ProfileDocument, changes: list[Change]) -> None:
    if document.interrupted:
        raise KeyboardInterrupt
    if document.failures:
        first = document.failures[0]
        raise (UserError if first.user_can_mend else VerificationError)(first.message)
    worse = [change for change in changes if change.verdict == "worse"]
    if worse:
        most = max(worse, key=lambda change: change.shift.share)
        raise VerificationError(
            f"{most.name}: expected {most.stage} to take no longer than before, found {100 * most.shift.share:+.1f} %; "
            "see the table, or raise --tolerance"
        )
