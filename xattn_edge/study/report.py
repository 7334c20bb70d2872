"""What a study found, as Markdown and as charts: figures, their spread, and no more than they support."""

from __future__ import annotations

import os
import platform
from collections.abc import Mapping, Sequence
from pathlib import Path

from xattn_edge.study.chart import Point, scatter
from xattn_edge.study.effects import Spread
from xattn_edge.study.measured import CombinationResult
from xattn_edge.study.plan import TASKS, StudyPlan
from xattn_edge.study.reading import coverage, grid_lines
from xattn_runtime.files import atomic_write, check_replaceable, check_writable

__all__ = ["check_report", "processor", "write_report"]

_TITLES = {
    "vqa": "Questions about images",
    "sentiment": "Sentiment of words, speech and frames",
}
_DATA = {
    "vqa": "easy-VQA at 32 px, one drawn shape an image. Images and questions are synthetic: a generator made them. "
    "The split is that of the data set.",
    "sentiment": "sentences on films that people rated (VADER), of the test half those that are spoken, as text, "
    "speech and frames together. The speech is synthetic (espeak-ng) and tells nothing but the words; the frames are "
    "drawn, and tell of the rating by construction, under noise.",
}
_MOST_NAMED = 6


def check_report(path: Path) -> None:
    """Raise OutputError or OSError where `write_report` would, so that nothing is measured in vain."""
    path.parent.mkdir(parents=True, exist_ok=True)
    for each in (path, *(_chart(path, task) for task in TASKS)):
        check_replaceable(each)
    check_writable(path)


def write_report(
    path: Path,
    plan: StudyPlan,
    results: Sequence[CombinationResult],
    floors: Mapping[str, tuple[float, int]],
    threads: int,
    command: str,
) -> None:
    """Write the Markdown file `path`, and beside it a chart for each task.

    results: what is measured, with as many seeds as each has; what of the library is not among them is listed, too.
    floors: by task, accuracy without looking, and the number of test samples.
    """
    check_report(path)
    measured = [task for task in TASKS if any(each.task == task and each.forbidden is None for each in results)]
    parts = [_introduction(plan, measured, threads, command)]
    for task in measured:
        rows = [each for each in results if each.task == task]
        chart = _chart(path, task)
        points = [_point(each) for each in rows if each.forbidden is None]
        atomic_write(chart, scatter(_TITLES[task], points, floors[task][0]))
        parts.append(_section(task, plan, rows, floors[task], chart.name))
    atomic_write(path, "\n\n".join(parts) + "\n")


def _chart(path: Path, task: str) -> Path:
    return path.with_name(f"{path.stem}-{task}.svg")


def _introduction(plan: StudyPlan, measured: Sequence[str], threads: int, command: str) -> str:
    missing = [_TITLES[task].lower() for task in TASKS if task not in measured]
    typed = f"\n\n```bash\n{command}\n```" if command else ""
    return (
        "# Which mechanism, which fusion?\n\n"
        "Written by `xattn-edge study`; every figure below is measured." + typed + "\n\n"
        f"All have the same budget: {plan.steps} steps of {plan.batch} samples, one layer, and as wide a model as the "
        "parameters allow. Such models are small and trained briefly: what wins here need not win with a larger "
        "budget, and the figures are not the best that a mechanism can reach (docs/mechanisms.md has those). Learning "
        "rates are the same for all and were tuned for none."
        + (f" Not measured: {', '.join(missing)}." if missing else "")
        + "\n\n"
        "Latency is of a whole call (image or sound prepared, encoded and answered) by ONNX Runtime with "
        f"{threads} thread{'s' * (threads > 1)} on {processor()}: the median of rounds in which all take turns. "
        "Sizes are of the ONNX graphs of a bundle."
    )


def processor() -> str:
    """What this machine computes with, in words."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    name = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), None)
    return f"{name or platform.processor() or platform.machine()} ({os.cpu_count()} cores)"


def _section(
    task: str, plan: StudyPlan, rows: Sequence[CombinationResult], floor: tuple[float, int], chart: str
) -> str:
    measured = sorted((each for each in rows if each.forbidden is None), key=lambda each: -each.mean)
    spread = Spread.of([each.accuracies for each in measured])
    chance = 200 * (measured[0].mean / 100 * (1 - measured[0].mean / 100) / floor[1]) ** 0.5
    lines = [
        f"## {_TITLES[task]}",
        "",
        f"Data: {_DATA[task]} Accuracy is of {floor[1]:,} test samples, by the model in torch; {floor[0]:.1f} % are "
        f"right without looking{_below(measured, floor[0])}. At most {plan.parameters(task):,} parameters.",
        "",
        f"{coverage(rows)} All answer the same test samples; as many others would move the figures, all together, by "
        f"about ± {chance:.1f} points at the least (two standard errors).",
        "",
        *grid_lines(measured),
        "",
        *_conclusions(measured, spread),
        "",
        f"![accuracy against latency]({chart})",
        "",
        "### Every combination",
        "",
        "Distinguished from the highest: by two standard errors.",
        "",
        "| mechanism | fusion | accuracy, % | spread | lowest to highest | seeds | distinguished from the highest "
        "| width | parameters | fp32, KB | int8, KB | fp32, ms | int8, ms |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|---|",
        *(_row(each, measured[0], spread) for each in measured),
    ]
    refused = [each for each in rows if each.forbidden is not None]
    lines += [""] * bool(refused)
    lines += [f"- {each.mechanism} with {each.fusion} is refused: {each.forbidden}" for each in refused]
    return "\n".join(lines)


def _below(measured: Sequence[CombinationResult], floor: float) -> str:
    count = sum(each.mean <= floor for each in measured)
    return f", and {count} of {len(measured)} combinations do no better" if count else ""


def _row(each: CombinationResult, best: CombinationResult, spread: Spread | None) -> str:
    if each is best:
        verdict = "is it"
    elif spread is None:
        verdict = "–"
    else:
        verdict = "no" if _alike(each, best, spread) else "yes"
    cells = [
        each.mechanism,
        f"`{each.fusion}`",
        f"{each.mean:.1f}",
        "–" if each.deviation is None else f"± {each.deviation:.1f}",
        f"{min(each.accuracies):.1f} to {max(each.accuracies):.1f}",
        str(len(each.accuracies)),
        verdict,
        str(each.width),
        f"{each.parameters:,}",
        *(f"{each.bytes[precision] / 1000:,.0f}" for precision in ("fp32", "int8")),
        *(f"{each.milliseconds[precision]:.2f}" for precision in ("fp32", "int8")),
    ]
    return "| " + " | ".join(cells) + " |"


def _conclusions(measured: Sequence[CombinationResult], spread: Spread | None) -> list[str]:
    """What the figures support: which cannot be distinguished from the best, and which is the fastest of those."""
    best, lowest = measured[0], measured[-1]
    if spread is None:
        return ["With one seed no difference between two combinations can be distinguished from chance."]
    alike = [each for each in measured if _alike(each, best, spread)]
    fastest = min(alike, key=lambda each: each.milliseconds["int8"])
    named = "; ".join(_named(each) for each in alike[1:]) if len(alike) <= _MOST_NAMED else ""
    return [
        f"The spread over seeds, taken over all combinations, is {spread.deviation:.1f} points: two with "
        f"{len(best.accuracies)} seeds each must lie more than {spread.margin(best.accuracies, best.accuracies):.1f} "
        "points apart (two standard errors) to be distinguished from each other; among so many some lie so far apart "
        "by chance, and the highest owes part of its place to it.",
        "",
        f"- Highest is {_named(best)} with {best.mean:.1f} %. "
        + (
            "No other combination comes within that distance."
            if len(alike) == 1
            else f"{len(alike) - 1} of {len(measured) - 1} others cannot be distinguished from it"
            + (f": {named}." if named else "; the table says which.")
        ),
        f"- Of the highest and those, {_named(fastest)} takes the least time in int8: "
        f"{fastest.milliseconds['int8']:.2f} ms.",
        f"- Lowest is {_named(lowest)} with {lowest.mean:.1f} %.",
    ]


def _alike(each: CombinationResult, best: CombinationResult, spread: Spread) -> bool:
    """Whether it is the best or cannot be distinguished from it."""
    return each is best or each.mean >= best.mean - spread.margin(each.accuracies, best.accuracies)


def _named(each: CombinationResult) -> str:
    return f"{each.mechanism} with `{each.fusion}`"


def _point(each: CombinationResult) -> Point:
    return Point(each.mechanism, each.fusion, each.milliseconds["int8"], each.mean, each.deviation or 0.0)
