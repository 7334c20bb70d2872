"""A study at work: trainings, bundles and times, each written to disk as soon as it is measured."""

from __future__ import annotations

import json
import shutil
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from xattn_edge.study.measured import CombinationResult
from xattn_edge.study.plan import TASKS, StudyPlan, TaskName, described
from xattn_edge.study.report import check_report, processor, write_report
from xattn_edge.study.subjects import Subject, make_subject
from xattn_edge.training import Combination
from xattn_export import export_checkpoint, quantize_bundle
from xattn_runtime.brought_files import is_system_file
from xattn_runtime.errors import OutputError, UserError
from xattn_runtime.execution.settings import checked_threads
from xattn_runtime.files import atomic_write
from xattn_runtime.progress import Progress, silent

__all__ = ["StudyReport", "report_study", "study"]

_BUDGET, _RUNS, _BUNDLES, _TIMES = "budget.json", "runs", "bundles", "times.json"
_PRECISIONS = ("fp32", "int8")
_ROUNDS, _WARM_UP, _CALLS = 5, 2, 10


@dataclass(frozen=True)
class StudyReport:
    """What `study` wrote and measured."""

    report: Path
    plan: StudyPlan
    results: tuple[CombinationResult, ...]

    def to_dict(self) -> dict[str, Any]:
        """JSON form."""
        return {
            "report": str(self.report),
            "budget": self.plan.budget(),
            "results": [result.to_dict() for result in self.results],
        }


def study(
    folder: Path,
    plan: StudyPlan,
    *,
    report: Path | None = None,
    threads: int = 1,
    command: str = "",
    progress: Progress = silent,
) -> StudyReport:
    """Train, export and time every combination of a plan, and write what that says.

    What is done is not done again: a study that was stopped resumes, and one with more seeds or combinations within
    the same budget takes what it can use of an earlier one.

    Args:
        folder: for runs and bundles.
        report: Markdown file to write; charts lie beside it. By default `report.md` in the folder.
        threads: within an operator, in training and in timing.
        command: what was typed, for the record.

    Raises:
        OutputError: the folder holds something else, or a study of another budget; `report` is another file.
        DataError, DependencyError: the data are missing.
    """
    checked_threads(threads)
    _prepare(folder, plan)
    check_report(_report_path(folder, report))
    torch.set_num_threads(threads)
    subjects = {task: make_subject(task, plan) for task in plan.tasks}
    todo = [(seed, task, each) for seed in range(plan.seeds) for task in plan.tasks for each in plan.combinations]
    for number, (seed, task, combination) in enumerate(todo):
        name = _name(task, combination)

        def on_step(step: int, loss: float, number: int = number, name: str = name, seed: int = seed) -> None:
            what = f"{name}, seed {seed}: step {step} of {plan.steps}, loss {loss:.3f}"
            progress(what, (number + step / plan.steps) / len(todo))

        _run(folder, subjects[task], name, combination, seed, on_step, command)
    return _reported(folder, plan, subjects, report, threads, command, progress)


def report_study(
    folder: Path,
    tasks: tuple[TaskName, ...] = TASKS,
    *,
    report: Path | None = None,
    threads: int = 1,
    command: str = "",
    progress: Progress = silent,
) -> StudyReport:
    """Time what a study has trained so far, however much that is, and write the report; train nothing.

    Tasks and combinations may have any number of seeds; the report states how many.

    Args:
        folder: of a study.
        tasks: those to report; what of them is missing is listed.
        report, threads, command: as for `study`.

    Raises:
        UserError: the folder holds no study, or nothing of these tasks.
        DataError, DependencyError: the data are missing.
    """
    checked_threads(threads)
    path = folder / _BUDGET
    if not path.is_file():
        raise UserError(f"{folder}: expected a study, found no {_BUDGET}; run `xattn-edge study` first")
    seeds = [int(each.stem.rpartition("-")[2]) + 1 for each in (folder / _RUNS).glob("*.json")]
    budget = json.loads(path.read_bytes())
    sizes = {name: budget[name] for name in ("steps", "batch", "test_pictures", "test_sentences")}
    plan = StudyPlan(tasks=tasks, seeds=max(seeds, default=1), **sizes)
    _prepare(folder, plan)
    check_report(_report_path(folder, report))
    present = tuple(task for task in tasks if any(_runs(folder, plan, task, each) for each in plan.combinations))
    if not present:
        raise UserError(f"{folder}: expected runs of {' or '.join(tasks)}, found none; train them first")
    torch.set_num_threads(threads)
    plan = replace(plan, tasks=present)
    subjects = {task: make_subject(task, plan) for task in present}
    return _reported(folder, plan, subjects, report, threads, command, progress)


def _reported(
    folder: Path,
    plan: StudyPlan,
    subjects: dict[TaskName, Subject],
    report: Path | None,
    threads: int,
    command: str,
    progress: Progress,
) -> StudyReport:
    """Time the trained models of a plan, and report them."""
    times = _times(folder, plan, subjects, threads, lambda what: progress(what, 1.0))
    measured = [_measured(folder, plan, task, each, times) for task in plan.tasks for each in plan.combinations]
    results = tuple(each for each in measured if each is not None)
    path = _report_path(folder, report)
    floors: dict[str, tuple[float, int]] = {task: (subject.floor, subject.tested) for task, subject in subjects.items()}
    write_report(path, plan, results, floors, threads, command)
    return StudyReport(path, plan, results)


def _report_path(folder: Path, report: Path | None) -> Path:
    return report or folder / "report.md"


def _prepare(folder: Path, plan: StudyPlan) -> None:
    """A new folder, or that of a study of the same budget."""
    budget = json.loads(json.dumps(plan.budget()))
    path = folder / _BUDGET
    if path.is_file():
        recorded = json.loads(path.read_bytes())
        if recorded != budget:
            raise OutputError(f"{folder}: holds a study of another budget, {recorded}; expected {budget}; name another")
        return
    if folder.exists() and (not folder.is_dir() or not all(is_system_file(each.name) for each in folder.iterdir())):
        raise OutputError(f"{folder}: holds something else than a study; name an empty folder")
    folder.mkdir(parents=True, exist_ok=True)
    atomic_write(path, json.dumps(budget, indent=2) + "\n")


def _name(task: TaskName, combination: Combination) -> str:
    kind = described(combination).replace(", ", "-")
    return f"{task}-{kind}-{combination.fusion}".replace("_", "-")


def _run(
    folder: Path,
    subject: Subject,
    name: str,
    combination: Combination,
    seed: int,
    on_step: Callable[[int, float], None],
    command: str,
) -> None:
    """One training, and with the first seed its bundles, unless they are there."""
    path = folder / _RUNS / f"{name}-{seed}.json"
    if path.is_file():
        return
    for each in (_RUNS, _BUNDLES):
        (folder / each).mkdir(exist_ok=True)
    began = time.monotonic()
    try:
        width, parameters = subject.take(combination, seed)
    except ValueError as error:
        atomic_write(path, json.dumps({"forbidden": str(error)}) + "\n")
        return
    subject.fit(seed, on_step)
    result: dict[str, Any] = {"width": width, "parameters": parameters, "accuracy": subject.accuracy()}
    result["training_seconds"] = round(time.monotonic() - began, 2)
    if seed == 0:
        result |= _bundle_bytes(folder, subject, name, command)
    atomic_write(path, json.dumps(result, indent=2) + "\n")


def _bundle_bytes(folder: Path, subject: Subject, name: str, command: str) -> dict[str, int]:
    """Write both bundles; the bytes of their graphs."""
    checkpoint = folder / f"{name}.checkpoint"
    shutil.rmtree(checkpoint, ignore_errors=True)
    subject.save(checkpoint)
    full, small = (_bundle(folder, name, precision) for precision in _PRECISIONS)
    export_checkpoint(checkpoint, full, overwrite=True, command=command, whole=False)
    quantize_bundle(full, small, overwrite=True, command=command)
    shutil.rmtree(checkpoint)
    sizes = [sum(path.stat().st_size for path in (each / "graphs").rglob("*")) for each in (full, small)]
    return {"fp32_bytes": sizes[0], "int8_bytes": sizes[1]}


def _bundle(folder: Path, name: str, precision: str) -> Path:
    return folder / _BUNDLES / f"{name}-{precision}.xattn"


def _times(
    folder: Path, plan: StudyPlan, subjects: dict[TaskName, Subject], threads: int, progress: Callable[[str], None]
) -> dict[str, float]:
    """Milliseconds of a call by bundle: the median of rounds, in each of which every bundle has its turn.

    All together or none: times of another day, machine or number of threads do not stand beside these.
    """
    bundles = dict(_runnable(folder, plan))
    path = folder / _TIMES
    how = {"threads": threads, "processor": processor()}
    if path.is_file():
        recorded = json.loads(path.read_bytes())
        if all(recorded.get(name) == value for name, value in how.items()) and set(recorded["milliseconds"]) >= set(
            bundles
        ):
            return dict(recorded["milliseconds"])
    rounds: dict[str, list[float]] = {name: [] for name in bundles}
    for number in range(_ROUNDS):
        for name, task in bundles.items():
            progress(f"timing {name}, round {number + 1} of {_ROUNDS}")
            call = subjects[task].call(folder / _BUNDLES / name, threads)
            rounds[name].append(_milliseconds(call))
    times = {name: statistics.median(values) for name, values in rounds.items()}
    atomic_write(path, json.dumps({**how, "milliseconds": times}, indent=2) + "\n")
    return times


def _runnable(folder: Path, plan: StudyPlan) -> Iterator[tuple[str, TaskName]]:
    for task in plan.tasks:
        for combination in plan.combinations:
            runs = _runs(folder, plan, task, combination)
            if runs and "forbidden" not in runs[0]:
                for precision in _PRECISIONS:
                    yield _bundle(folder, _name(task, combination), precision).name, task


def _runs(folder: Path, plan: StudyPlan, task: TaskName, combination: Combination) -> list[dict[str, Any]]:
    """What is there of the seeds of the plan, up to the first that is missing."""
    runs = []
    for seed in range(plan.seeds):
        path = folder / _RUNS / f"{_name(task, combination)}-{seed}.json"
        if not path.is_file():
            break
        runs.append(json.loads(path.read_bytes()))
    return runs


def _milliseconds(call: Callable[[], object]) -> float:
    """The median of some calls, after others that do not count."""
    for _ in range(_WARM_UP):
        call()
    taken = []
    for _ in range(_CALLS):
        began = time.perf_counter()
        call()
        taken.append(1000 * (time.perf_counter() - began))
    return statistics.median(taken)


def _measured(
    folder: Path, plan: StudyPlan, task: TaskName, combination: Combination, times: dict[str, float]
) -> CombinationResult | None:
    """None where there is no run."""
    runs = _runs(folder, plan, task, combination)
    if not runs:
        return None
    name, first = _name(task, combination), runs[0]
    identity: dict[str, Any] = {"task": task, "mechanism": described(combination), "fusion": combination.fusion}
    if "forbidden" in first:
        return CombinationResult(**identity, forbidden=first["forbidden"])
    return CombinationResult(
        **identity,
        accuracies=tuple(run["accuracy"] for run in runs),
        width=first["width"],
        parameters=first["parameters"],
        bytes={precision: first[f"{precision}_bytes"] for precision in _PRECISIONS},
        milliseconds={precision: times[_bundle(folder, name, precision).name] for precision in _PRECISIONS},
    )
