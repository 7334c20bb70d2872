"""Profiles every bundle on every provider, all taking turns, so that a drift of the machine hits all alike."""

from __future__ import annotations

import logging
import math
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from itertools import product
from statistics import median
from typing import Any

import numpy as np

from xattn_runtime.bundle.folder import bundle_path
from xattn_runtime.errors import UserError, XattnError
from xattn_runtime.execution.machine import describe_machine
from xattn_runtime.execution.settings import checked_threads
from xattn_runtime.profiling.document import Failure, Profile, ProfileDocument
from xattn_runtime.profiling.floors import find_floors
from xattn_runtime.profiling.measure.estimates import median_interval, quantile_interval, summarise
from xattn_runtime.profiling.measure.limits import Limits, measure_limits
from xattn_runtime.profiling.measure.nodes import GraphTime, summarise_graph
from xattn_runtime.profiling.measure.sensors import Drift, find_energy_counter, read_clock_mhz, read_temperature_c
from xattn_runtime.profiling.worker_process import ProfileCombination, WorkerProcess
from xattn_runtime.progress import Progress, silent
from xattn_runtime.tasks import Times
from xattn_runtime.version import installed_version

__all__ = ["ProfileOptions", "profile_combinations", "profile_matrix"]

Trace = dict[str, list[dict[str, Any]]]

_LOGGER = logging.getLogger("xattn_runtime")
_TURN_SECONDS = 0.1
_FEWEST_ROUNDS, _FEWEST_PASSES = 5, 20
_MANY = 10**9
_MOST_PROCESSES, _MOST_IN_A_BATCH = 100, 1024
_NODE_PASSES = 4


@dataclass(frozen=True)
class ProfileOptions:
    """How much is measured.

    runs: passes of each combination; None measures until the medians are known to within `precision` of themselves, or
    until all turns together have taken `time_budget_s`. processes: of each combination, one after another, which share
    in that. time_limit_s: the most that a worker may take for one answer. nodes: whether to look inside the graphs, and
    at the device's limits.
    """

    runs: int | None = None
    time_budget_s: float = 60.0
    precision: float = 0.02
    time_limit_s: float = 300.0
    images: Sequence[str] = ()
    nodes: bool = True
    processes: int = 1


@dataclass
class _Seen:
    """What a worker has shown so far."""

    worker: WorkerProcess
    warmup: int = 0
    passes: int = 0
    times: Times = field(default_factory=dict)
    rounds: dict[str, list[float]] = field(default_factory=dict)
    reference_ms: list[float] = field(default_factory=list)
    process_rounds: list[int] = field(default_factory=lambda: [0])
    passes_before: int = 0
    cpu_ms: float = 0.0
    energy_j: float | None = None
    memory: dict[str, Any] = field(default_factory=dict)
    trace: Trace = field(default_factory=dict)

    def begin(self, worker: WorkerProcess) -> None:
        """Go on with a new process."""
        self.worker = worker
        self.process_rounds.append(0)
        self.passes_before = self.passes

    def take(self, turn: Mapping[str, Any]) -> None:
        """Add a turn."""
        self.passes += turn["passes"]
        self.cpu_ms += turn["cpu_ms"]
        if turn["energy_j"] is not None:
            self.energy_j = (self.energy_j or 0.0) + turn["energy_j"]
        for stage, measured in turn["times"].items():
            self.times.setdefault(stage, []).extend(measured)
            if stage != "tokens":
                self.rounds.setdefault(stage, []).append(turn["typical"][stage])
        self.reference_ms.append(turn["reference_ms"])
        self.process_rounds[-1] += 1

    def is_known(self, precision: float) -> bool:
        """Whether the intervals of this process's median, and of what `--against` compares, are narrow enough."""
        totals, count = sorted(self.times.get("total", [])[self.passes_before :]), self.process_rounds[-1]
        if len(totals) < _FEWEST_PASSES or count < _FEWEST_ROUNDS:
            return False
        low, high = quantile_interval(totals, 0.5)
        if low is None or high is None or (high - low) / 2 > precision * median(totals):
            return False
        relative = np.divide(self.rounds["total"][-count:], self.reference_ms[-count:])
        return median_interval(relative.tolist()) <= precision


def profile_matrix(
    bundles: Sequence[str | os.PathLike[str]],
    providers: Sequence[str] = ("cpu",),
    threads: Sequence[int | None] = (None,),
    batches: Sequence[int] = (1,),
    options: ProfileOptions | None = None,
    progress: Progress = silent,
    traces: dict[ProfileCombination, Trace] | None = None,
) -> ProfileDocument:
    """Profile every bundle on every provider with every number of threads and of images at once.

    Each combination has a process of its own; one that fails is listed among the failures, and the others continue.
    KeyboardInterrupt, once something has been measured, ends the measuring: the document then says `interrupted`.

    Args:
        traces: receives ONNX Runtime's own events of each combination.

    Raises:
        UserError: nothing to measure, or a number out of range.
    """
    options = options or ProfileOptions()
    combinations = [
        ProfileCombination(os.fspath(bundle_path(bundle)), provider, count, batch)
        for bundle, provider, count, batch in product(bundles, providers, threads, batches)
    ]
    run = _measured(combinations, options, progress)
    if traces is not None:
        traces.update({seen.worker.combination: seen.trace for seen in run.seen})
    return run.document()


def profile_combinations(
    combinations: Sequence[ProfileCombination], options: ProfileOptions, progress: Progress = silent
) -> tuple[dict[ProfileCombination, Profile], list[Failure]]:
    """As `profile_matrix`, of just these: the profile of each, and what failed. KeyboardInterrupt ends it."""
    run = _measured(combinations, options, progress)
    if run.interrupted:
        raise KeyboardInterrupt
    profiles = {seen.worker.combination: _profile(seen, run.limits) for seen in run.seen if seen.passes}
    return profiles, run.failures


def _measured(combinations: Sequence[ProfileCombination], options: ProfileOptions, progress: Progress) -> _Run:
    _check(combinations, options)
    run = _Run(options, progress)
    with run.interruptible():
        for number in range(options.processes):
            run.start(combinations, number)
            run.measure(number)
        run.finish()
    return run


class _Run:
    """The state of one call."""

    def __init__(self, options: ProfileOptions, progress: Progress) -> None:
        self.options, self.progress = options, progress
        self.seen: list[_Seen] = []
        self.failures: list[Failure] = []
        self.limits: list[Limits] = []
        self.interrupted = False
        self._created = datetime.now(UTC).isoformat(timespec="seconds")
        self._before = read_temperature_c(), read_clock_mhz()
        self._workers: list[WorkerProcess] = []

    @contextmanager
    def interruptible(self) -> Iterator[None]:
        """End all processes, and keep what was measured when Ctrl-C comes."""
        try:
            yield
        except KeyboardInterrupt:
            self.seen = [seen for seen in self.seen if seen.passes]
            if not self.seen:
                raise
            self.interrupted = True
        finally:
            for worker in self._workers:
                worker.end()

    def start(self, combinations: Sequence[ProfileCombination], process: int) -> None:
        """Load and warm every one: the first process of each, or the next of those that have not failed."""
        for worker in self._workers:
            worker.end()
        known = {seen.worker.combination: seen for seen in self.seen}
        for number, combination in enumerate(known or combinations):
            share = number / len(combinations) if process == 0 else 1.0
            self._report_progress(f"load {combination.bundle} on {combination.provider}", process, 0.25 * share)
            with self._may_fail(combination):
                worker = WorkerProcess(combination, self.options.images, self.options.time_limit_s)
                self._workers.append(worker)
                warmup = worker.order("warm")
                if process == 0:
                    self.seen.append(_Seen(worker, warmup))
                else:
                    known[combination].begin(worker)

    def measure(self, process: int) -> None:
        """Rounds in which each has its turn, until all is known or this process's share of the time is up."""
        began, budget_s = time.perf_counter(), self.options.time_budget_s / self.options.processes
        number = 0
        while going := [seen for seen in self.seen if not self._is_done(seen, process)]:
            elapsed = time.perf_counter() - began
            if self.options.runs is None and number >= 2 and elapsed > budget_s:
                break
            # Who is first changes, so that none always follows the same one.
            for seen in going[number % len(going) :] + going[: number % len(going)]:
                with self._may_fail(seen.worker.combination):
                    left = _MANY if self.options.runs is None else self._runs(process) - seen.passes
                    seen.take(seen.worker.order("turn", seconds=_TURN_SECONDS, passes=left))
            number += 1
            self._report_progress(f"round {number}", process, 0.25 + 0.75 * self._share(elapsed / budget_s, process))

    def finish(self) -> None:
        """Memory; and, if asked for, the nodes and the device's limits."""
        for number, seen in enumerate(list(self.seen)):
            combination = seen.worker.combination
            self.progress(f"look inside {combination.bundle}", 0.8 + 0.2 * number / len(self.seen))
            with self._may_fail(combination):
                seen.memory = seen.worker.order("memory")
                if self.options.nodes:
                    seen.trace = seen.worker.order("nodes", passes=_NODE_PASSES)
        if self.options.nodes:
            counts = sorted({seen.worker.ready["threads"] for seen in self.seen})
            try:
                self.limits = [measure_limits(count) for count in counts]
            except MemoryError:
                _LOGGER.info("no floors: not enough memory to measure what this device can do at best")
        self.progress("done", 1.0)

    def document(self) -> ProfileDocument:
        """All of it."""
        counter = find_energy_counter()
        return ProfileDocument(
            machine=describe_machine(),
            limits=tuple(self.limits),
            profiles=tuple(_profile(seen, self.limits) for seen in self.seen if seen.passes),
            failures=tuple(self.failures),
            energy_source=counter.source,
            energy_absent=counter.absent,
            temperature_c=Drift(self._before[0], read_temperature_c()),
            clock_mhz=Drift(self._before[1], read_clock_mhz()),
            interrupted=self.interrupted,
            created=self._created,
            version=installed_version(),
        )

    def _is_done(self, seen: _Seen, process: int) -> bool:
        if self.options.runs is not None:
            return seen.passes >= self._runs(process)
        # What several processes show is as sure together.
        return seen.is_known(self.options.precision * self.options.processes**0.5)

    def _runs(self, process: int) -> int:
        """How many passes there are to be when this process has done its part."""
        return math.ceil((self.options.runs or 0) * (process + 1) / self.options.processes)

    def _share(self, of_budget: float, process: int) -> float:
        if self.options.runs is None:
            return min(1.0, of_budget)
        part = self.options.runs / self.options.processes
        return min((max(0.0, seen.passes / part - process) for seen in self.seen), default=1.0)

    def _report_progress(self, text: str, process: int, share: float) -> None:
        """Progress, of which all processes together make the first 0.8."""
        self.progress(text, min(0.8, 0.8 * (process + min(1.0, share)) / self.options.processes))

    @contextmanager
    def _may_fail(self, combination: ProfileCombination) -> Iterator[None]:
        try:
            yield
        except XattnError as error:
            self.seen = [seen for seen in self.seen if seen.worker.combination != combination]
            self.failures.append(
                Failure(
                    combination.bundle,
                    combination.provider,
                    combination.threads,
                    combination.batch,
                    type(error).__name__,
                    str(error),
                    error.exit_code == UserError.exit_code,
                )
            )


def _profile(seen: _Seen, limits: Sequence[Limits]) -> Profile:
    ready, combination = seen.worker.ready, seen.worker.combination
    tokens = seen.times.pop("tokens", [])
    stages = {stage: summarise(measured) for stage, measured in seen.times.items()}
    decode = sum(seen.times.get("decode", []))
    graph_times = [summarise_graph(role, events) for role, events in seen.trace.items()]
    graphs: tuple[GraphTime, ...] = tuple(graph for graph in graph_times if graph is not None)
    limit = next((one for one in limits if one.threads == ready["threads"]), None)
    return Profile(
        bundle=combination.bundle,
        name=ready["name"],
        task=ready["task"],
        bundle_bytes=ready["bundle_bytes"],
        provider=ready["provider"],
        threads=ready["threads"],
        batch=combination.batch,
        passes=seen.passes,
        warmup_passes=seen.warmup,
        load_cold_ms=ready["load_cold_ms"],
        load_warm_ms=ready["load_warm_ms"],
        stages=stages,
        rounds=seen.rounds,
        reference_ms=tuple(seen.reference_ms),
        process_rounds=tuple(seen.process_rounds),
        tokens_per_second=1000.0 * sum(tokens) / decode if decode else None,
        cpu_ms=seen.cpu_ms / seen.passes,
        energy_j=None if seen.energy_j is None else seen.energy_j / seen.passes,
        peak_bytes=seen.memory.get("peak_bytes"),
        steady_bytes=seen.memory.get("steady_bytes"),
        working_set_bytes=seen.memory.get("working_set_bytes"),
        memory_unknown_because=seen.memory.get("memory_unknown_because"),
        onnxruntime_version=ready["onnxruntime_version"],
        metric=ready["metric"],
        floors={} if limit is None or ready["provider"] != "cpu" else find_floors(stages, graphs, limit),
        graphs=graphs,
    )


def _check(combinations: Sequence[ProfileCombination], options: ProfileOptions) -> None:
    if not combinations:
        raise UserError("expected a bundle, a provider and a number of threads to profile, found none")
    if options.runs is not None and options.runs < 1:
        raise UserError(f"runs: expected at least 1, found {options.runs}")
    for name, values, most in (
        ("processes", [options.processes], _MOST_PROCESSES),
        ("batch", [one.batch for one in combinations], _MOST_IN_A_BATCH),
    ):
        if (value := next((value for value in values if not 1 <= value <= most), None)) is not None:
            raise UserError(f"{name}: expected 1 to {most}, found {value}")
    for one in combinations:
        checked_threads(one.threads)
    numbers = {
        "time budget": options.time_budget_s,
        "precision": options.precision,
        "time limit": options.time_limit_s,
    }
    for what, number in numbers.items():
        if not number > 0 or math.isinf(number):
            wanted = "more than 0" if not number > 0 else "a finite number"
            raise UserError(f"{what}: expected {wanted}, found {number:g}")
