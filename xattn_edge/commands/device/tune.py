"""`xattn-edge tune`: what a bundle runs best with on this device."""

from __future__ import annotations

from dataclasses import asdict
from enum import StrEnum
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Annotated

import typer

from xattn_edge.commands.shared.console import Console, command
from xattn_edge.commands.shared.options import Debug, Json, Quiet, bundle_argument, find_bundles, new_app

if TYPE_CHECKING:
    from xattn_runtime.profiling.tune import Tuned

__all__ = ["app"]

app = new_app()


class Goal(StrEnum):
    """What to minimize: time of one image, time of each of several, peak memory, or joules."""

    latency = "latency"
    throughput = "throughput"
    memory = "memory"
    energy = "energy"


@app.command()
def tune(
    bundle: Annotated[Path, bundle_argument("Bundle to tune.")],
    goal: Annotated[Goal, typer.Option("--goal", help="What to minimize.")] = Goal.latency,
    providers: Annotated[
        list[str] | None, typer.Option("--provider", help="Execution provider; repeat for several.  [default: cpu]")
    ] = None,
    also: Annotated[
        list[Path] | None,
        typer.Option(
            "--also",
            callback=find_bundles,
            help="Also try the same model in another attention form; repeat for several.",
        ),
    ] = None,
    time_budget: Annotated[float, typer.Option("--time-budget", help="Measure for this many seconds.")] = 60.0,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Write nothing.")] = False,
    as_json: Json = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Find the settings that suit this device best.

    Threads, their spinning and the memory arena are tried in turns, with --also the other attention form too, and the
    best has to beat the defaults once more. It is written to NAME.xattn.device.json beside the bundle, which every
    later run on this machine uses unless it asks for threads itself. Graphs as ONNX Runtime optimizes them for this
    processor are kept in NAME.xattn.device where loading them is surely faster. Where nothing is surely better,
    nothing is written, and what was written before is removed.

    \b
    Examples:
      xattn-edge tune emoji-caption.xattn
      xattn-edge tune emoji-caption.xattn --goal memory --time-budget 30
      xattn-edge tune standard.xattn --also decomposed.xattn
    """
    with command(as_json=as_json, quiet=quiet, debug=debug) as console:
        from xattn_runtime.brought_files import is_folder
        from xattn_runtime.execution.device_profile import (
            check_device_profile,
            remove_device_profile,
            write_device_profile,
        )
        from xattn_runtime.profiling.tune import tune_bundle

        for place in [] if dry_run else [bundle, *(also or [])]:
            if is_folder(place):
                check_device_profile(place)
        path, removed = None, False
        with TemporaryDirectory() as folder:
            with console.progress() as progress:
                tuned = tune_bundle(
                    bundle, goal.value, providers or ["cpu"], time_budget, progress, also or [], Path(folder)
                )
            if tuned.chosen is not None and not dry_run:
                path = write_device_profile(Path(tuned.bundle), tuned.chosen, Path(folder))
            elif not dry_run:
                removed = remove_device_profile(bundle)
        if as_json:
            console.document({**asdict(tuned), "written": None if path is None else str(path)})
            return
        _print(console, tuned)
        _print_choice(console, tuned, str(bundle))
        if tuned.chosen is None:
            what = "what an earlier tuning wrote was removed" if removed else "nothing was written"
            console.note(f"nothing is surely better than the defaults: {what}")
        else:
            console.note(f"written: {path or 'nothing (--dry-run)'}")


def _print_choice(console: Console, tuned: Tuned, bundle: str) -> None:
    """What was chosen, and what came of optimized graphs."""
    if tuned.chosen is not None and tuned.chosen.gain:
        console.note(f"{100 * tuned.chosen.gain:.1f} % below the defaults")
    if tuned.bundle != bundle:
        console.note(f"take {tuned.bundle} on this device: its attention form is the better one here")
    verdict = tuned.optimized
    if verdict is not None and verdict.taken is not None:
        share, size = 100 * verdict.load_gain, verdict.bytes / 1e6
        console.note(f"optimized graphs load {share:.1f} % faster; they are kept, {size:.1f} MB")
    elif verdict is not None:
        console.note(f"optimized graphs are not kept: {verdict.because}")


def _print(console: Console, tuned: Tuned) -> None:
    unit = {"memory": "peak MB", "energy": "J"}.get(tuned.goal, "ms an image")
    scale = 1e6 if tuned.goal == "memory" else 1.0
    rows: list[tuple[object, ...]] = [
        ("bundle", "attention", "provider", "threads", "spinning", "arena", "total ms", unit, "")
    ]
    for one in tuned.candidates:
        mark = "default" if one == tuned.default else ""
        switches = ("on" if one.spinning else "off", "on" if one.arena else "off")
        rows.append(
            (one.bundle, one.attention, one.provider, one.threads, *switches, one.total_ms, one.figure / scale, mark)
        )
    console.table(rows)
