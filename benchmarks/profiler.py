"""Whether the profiler can be trusted: beside bare loops, and in telling a slow-down from none.

    python benchmarks/profiler.py [--bundle emoji-caption.xattn] [--tries 100] [--state tries.jsonl]

Bare loops take turns with the profiler in one process. Every try profiles the same bundle three times, twice as it is
and once so that every call waits for 10 % of its own time, busily; they take turns, as those of `profile` do, in
PROCESSES new processes each, one after another. One profile then stands against each of the others: in the same rounds,
as `--against BUNDLE` does, and against those of the next try, measured at another time in other processes, as
`--against JSON` does. So a profile is part of up to four comparisons, two of each kind. What is in --state is not
measured again: the program may be ended and started anew. Prints Markdown, then one JSON document; 100 tries take about
half an hour where nothing else runs.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from itertools import pairwise, permutations
from pathlib import Path
from typing import IO, Any, cast

from xattn_runtime.bundle.folder import default_bundle
from xattn_runtime.execution.session import open_session
from xattn_runtime.loader import load
from xattn_runtime.profiling.measure.estimates import is_warm
from xattn_runtime.profiling.measure.passes import Passes
from xattn_runtime.profiling.measure.reference import Reference
from xattn_runtime.profiling.measure.turns import take_turn
from xattn_runtime.profiling.regression_gate import compare_bundles, compare_documents
from xattn_runtime.tasks import CaptionTask

DELAY = 0.1
PROCESSES, ROUNDS, TURN_SECONDS = 4, 16, 0.03
TOLERANCE = 0.05
SIDES = {"plain": 0.0, "again": 0.0, "slowed": DELAY}
COMPARISONS = ("same, in turns", "found, in turns", "same, apart", "found, apart")

Profile = dict[str, Any]


def timed(work: Callable[[], object]) -> float:
    """Milliseconds."""
    began = time.perf_counter()
    work()
    return 1000 * (time.perf_counter() - began)


def profiled(task: CaptionTask, image: Path) -> dict[str, float]:
    """Milliseconds of the first stage and of the whole pass."""
    times = task.timed(image, task.bundle.manifest.golden.cases[0])
    return {"encode": times["encode"][0], "total": times["total"][0]}


def compare_with_bare_loops(bundle: Path, turns: int) -> dict[str, float]:
    """The profiler's stage over the same graph in a bare loop; and its pass over the same calls without it.

    The three take turns in every order: what runs first finds other things in the caches than what runs last.
    """
    task = load(bundle, task="caption")
    session = open_session(task.bundle, "image_encoder", task.settings)
    image = task.bundle.file(task.bundle.manifest.golden.cases[0].image)
    inputs = {"pixel_values": task._images.prepare(image).inputs["pixel_values"][None]}
    outputs = list(session.output_shapes)
    times: dict[str, list[float]] = {name: [] for name in ("encode", "total", "bare", "plain")}
    works: list[Callable[[], dict[str, float]]] = [
        lambda: profiled(task, image),
        lambda: {"bare": timed(lambda: session._loaded.graph.run(outputs, inputs))},
        lambda: {"plain": timed(lambda: task.caption(task.encode(image)))},
    ]
    orders = list(permutations(works))
    for turn in range(turns + 5):
        for work in orders[turn % len(orders)]:
            for name, milliseconds in work().items():
                times[name].append(milliseconds)
    medians = {name: statistics.median(values[5:]) for name, values in times.items()}
    return {
        "stage over bare loop": medians["encode"] / medians["bare"],
        "pass over plain calls": medians["total"] / medians["plain"],
    }


def serve(bundle: Path, share: float) -> None:
    """The process of one side: a turn for every line of standard input."""
    task = load(bundle, threads=1, task="caption")
    for name in ("encode", "caption"):
        setattr(task, name, slowed(getattr(task, name), share))
    passes, reference, totals = Passes(task), Reference(1), [0.0]
    while not is_warm(totals) and len(totals) < 60:
        totals += passes.run()["total"]
    print("ready", flush=True)
    for _ in sys.stdin:
        turn = take_turn(passes, reference, TURN_SECONDS, 10**9)
        print(json.dumps([turn["typical"]["total"], turn["reference_ms"]]), flush=True)


def slowed(call: Callable[..., Any], share: float) -> Callable[..., Any]:
    """The same, and then waiting for a share of the time that it took."""

    def waiting(*arguments: Any) -> Any:
        began = time.perf_counter()
        result = call(*arguments)
        until = began + (1 + share) * (time.perf_counter() - began)
        while share and time.perf_counter() < until:
            pass
        return result

    return waiting


class Side:
    """A process of one side."""

    def __init__(self, bundle: Path, share: float) -> None:
        command = [sys.executable, __file__, f"--bundle={bundle}", f"--serve={share}"]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def wait(self) -> None:
        """Until it is warm."""
        cast("IO[str]", self._process.stdout).readline()

    def turn(self) -> tuple[float, float]:
        """Milliseconds of a pass and of the reference."""
        print(file=self._process.stdin, flush=True)
        total_ms, reference_ms = json.loads(cast("IO[str]", self._process.stdout).readline())
        return total_ms, reference_ms

    def end(self) -> None:
        """Let it end by itself."""
        self._process.communicate()


def one_try(bundle: Path) -> dict[str, Profile]:
    """A profile of each side, in the same rounds; who begins changes."""
    rounds: dict[str, list[tuple[float, float]]] = {side: [] for side in SIDES}
    for _ in range(PROCESSES):
        sides = {side: Side(bundle, share) for side, share in SIDES.items()}
        for one in sides.values():
            one.wait()
        for number in range(ROUNDS):
            first = number % len(sides)
            for side in [*sides][first:] + [*sides][:first]:
                rounds[side].append(sides[side].turn())
        for one in sides.values():
            one.end()
    return {
        side: {
            "bundle": side,
            "name": "model",
            "provider": "cpu",
            "threads": 1,
            "batch": 1,
            "rounds": {"total": [total for total, _ in measured]},
            "reference_ms": [reference for _, reference in measured],
            "process_rounds": PROCESSES * [ROUNDS],
        }
        for side, measured in rounds.items()
    }


def measured_tries(bundle: Path, count: int, state: Path | None) -> list[dict[str, Profile]]:
    """`count` + 1 tries, each written to `state` as soon as it is measured."""
    done = [json.loads(line) for line in state.read_text().splitlines()] if state and state.exists() else []
    while len(done) <= count:
        done.append(one_try(bundle))
        if state:
            with state.open("a") as file:
                print(json.dumps(done[-1]), file=file)
        print(f"try {len(done)} of {count + 1}: {json.dumps(counted(done))}", file=sys.stderr, flush=True)
    return done[: count + 1]


def counted(tries: list[dict[str, Profile]]) -> dict[str, int]:
    """How often an unchanged bundle is reported as the same, and how often the slow-down is detected."""
    correct = dict.fromkeys(COMPARISONS, 0)
    for one, following in pairwise(tries):
        for name, side, expected in (("same", "again", "same"), ("found", "slowed", "worse")):
            together = {"profiles": [one["plain"], one[side]]}
            correct[f"{name}, in turns"] += compare_bundles(together, "plain", TOLERANCE)[0].verdict == expected
            old, new = {"profiles": [one["plain"]]}, {"profiles": [following[side]]}
            correct[f"{name}, apart"] += compare_documents(old, new, TOLERANCE)[0].verdict == expected
    return correct


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--bundle", type=Path, help="of captions; the one that ships without it")
    parser.add_argument("--tries", type=int, default=100)
    parser.add_argument("--turns", type=int, default=200)
    parser.add_argument("--state", type=Path, help="keep tries there, and go on from those that are")
    parser.add_argument("--serve", type=float, help=argparse.SUPPRESS)
    options = parser.parse_args()
    bundle = options.bundle or default_bundle("caption")
    if options.serve is not None:
        serve(bundle, options.serve)
        return
    counts = counted(measured_tries(bundle, options.tries, options.state))
    report: dict[str, Any] = compare_with_bare_loops(bundle, options.turns)
    print("| | ratio |\n|---|---|")
    for name, value in report.items():
        print(f"| {name} | {value:.3f} |")
    print(f"\n| of {options.tries} | |\n|---|---|")
    for name, count in counts.items():
        print(f"| {name} | {count} |")
    print(f"\n{json.dumps(report | counts | {'tries': options.tries})}")


if __name__ == "__main__":
    main()
