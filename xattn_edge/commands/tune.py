"""`xattn-edge tune`: what a bundle runs best with on this device."""

from __future__ import annotations

from dataclasses import asdict
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from xattn_edge.commands._console import Console, command
from xattn_edge.commands._options import Debug, Json, Quiet, new_app

if TYPE_CHECKING:
    from xattn_runtime.profile.tune import Tuned

__all__ = ["app"]

app = new_app()


class Goal(StrEnum):
    """What is to be low: time of one picture, time of each of several, peak memory, or joules."""

    latency = "latency"
    throughput = "throughput"
    memory = "memory"
    energy = "energy"


@app.command()
def tune(
    bundle: Annotated[Path, typer.Argument(metavar="BUNDLE", help="Bundle to tune.")],
    goal: Annotated[Goal, typer.Option("--goal", help="What is to be low.")] = Goal.latency,
    providers: Annotated[
        list[str] | None, typer.Option("--provider", help="Execution provider; repeat it.  [default: cpu]")
    ] = None,
    time_budget: Annotated[float, typer.Option("--time-budget", help="Seconds of measuring.")] = 60.0,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Write nothing.")] = False,
    as_json: Json = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Find the settings that suit this device best.

    Threads, their spinning and the memory arena are tried in turns, and the best has to beat the defaults once more. It
    is written to NAME.xattn.device.json beside the bundle, which every later run on this machine obeys unless it asks
    for threads itself; where nothing is surely better, nothing is written.

    \b
    Examples:
      xattn-edge tune emoji-caption.xattn
      xattn-edge tune emoji-caption.xattn --goal memory --time-budget 30
    """
    with command(as_json=as_json, quiet=quiet, debug=debug) as console:
        from xattn_runtime.device_profile import write_device_profile
        from xattn_runtime.profile.tune import tune_bundle

        with console.progress() as progress:
            found = tune_bundle(bundle, goal.value, providers or ["cpu"], time_budget, progress)
        path = None
        if found.chosen is not None and not dry_run:
            path = write_device_profile(bundle, found.chosen)
        if as_json:
            console.document({**asdict(found), "written": None if path is None else str(path)})
            return
        _print(console, found)
        if found.chosen is None:
            console.note("nothing is surely better than the defaults: nothing was written")
        else:
            console.note(
                f"{100 * found.chosen.gain:.1f} % below the defaults; written: {path or 'nothing (--dry-run)'}"
            )


def _print(console: Console, found: Tuned) -> None:
    unit = {"memory": "peak MB", "energy": "J"}.get(found.goal, "ms a picture")
    scale = 1e6 if found.goal == "memory" else 1.0
    rows: list[tuple[object, ...]] = [("provider", "threads", "spinning", "arena", "total ms", unit, "")]
    for one in found.candidates:
        mark = "default" if one == found.default else ""
        switches = ("on" if one.spinning else "off", "on" if one.arena else "off")
        rows.append((one.provider, one.threads, *switches, one.total_ms, one.figure / scale, mark))
    console.table(rows)
