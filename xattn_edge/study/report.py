"""What a study found, as Markdown and as pictures: figures, their spread, and no more than they support."""

from __future__ import annotations

import os
import platform
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from xattn_edge.models.checkpoint import write_atomically
from xattn_edge.study.chart import Point, scatter
from xattn_edge.study.plan import TASKS, StudyPlan

__all__ = ["Measured", "write_report"]

_TITLES = {
    "vqa": "Questions about pictures",
    "sentiment": "Sentiment of words, speech and frames",
}
_DATA = {
    "vqa": "easy-VQA at 32 px, one drawn shape a picture. Pictures and questions are synthetic: a generator made them. "
    "The split is that of the data set.",
    "sentiment": "sentences on films that people rated (VADER), of the test half those that are spoken, as text, "
    "speech and frames together. The speech is synthetic (espeak-ng) and tells nothing but the words; the frames are "
    "drawn, and tell of the rating by construction, under noise.",
}
# Two standard errors.
_SURE = 2.0


@dataclass(frozen=True, kw_only=True)
class Measured:
    """One combination: accuracy in percent by seed, bytes and milliseconds by precision; or why it is forbidden."""

    task: str
    mechanism: str
    fusion: str
    accuracies: tuple[float, ...] = ()
    width: int = 0
    parameters: int = 0
    bytes: Mapping[str, int] = field(default_factory=dict)
    milliseconds: Mapping[str, float] = field(default_factory=dict)
    forbidden: str | None = None

    @property
    def mean(self) -> float:
        """Of accuracy."""
        return statistics.fmean(self.accuracies)

    @property
    def deviation(self) -> float | None:
        """Standard deviation of accuracy over seeds; None of a single one."""
        return statistics.stdev(self.accuracies) if len(self.accuracies) > 1 else None

    def to_dict(self) -> dict[str, Any]:
        """JSON form."""
        return asdict(self)


def write_report(
    path: Path,
    plan: StudyPlan,
    results: Sequence[Measured],
    floors: Mapping[str, tuple[float, int]],
    threads: int,
    command: str,
) -> None:
    """Write the Markdown file `path`, and beside it a picture for each task.

    floors: by task, accuracy without looking, and the number of test samples.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    parts = [_introduction(plan, threads, command)]
    for task in TASKS:
        rows = [each for each in results if each.task == task]
        measured = [each for each in rows if each.forbidden is None]
        if not measured:
            continue
        picture = path.with_name(f"{path.stem}-{task}.svg")
        write_atomically(picture, scatter(_TITLES[task], [_point(each) for each in measured], floors[task][0]))
        parts.append(_section(task, plan, rows, floors[task], picture.name))
    write_atomically(path, "\n\n".join(parts) + "\n")


def _introduction(plan: StudyPlan, threads: int, command: str) -> str:
    compared = (
        "Every mechanism is combined with every fusion."
        if plan.which == "all"
        else "Every mechanism is measured with the fusion `concatenation`, and every fusion with the mechanism "
        "`text_to_image`; other combinations are not measured."
    )
    seeds = "one seed, so that nothing is known of their spread" if plan.seeds == 1 else f"{plan.seeds} seeds"
    missing = [_TITLES[task].lower() for task in TASKS if task not in plan.tasks]
    compared += f" Not measured: {', '.join(missing)}." if missing else ""
    typed = f"\n\n```bash\n{command}\n```" if command else ""
    return (
        "# Which mechanism, which fusion?\n\n"
        "Written by `xattn-edge study`; every figure below is measured." + typed + "\n\n"
        f"{compared} All have the same budget: {plan.steps} steps of {plan.batch} samples, one layer, and as wide a "
        f"model as the parameters allow, with {seeds}. Such models are small and trained briefly: what wins here need "
        "not win with a larger budget, and the figures are not the best that a mechanism can reach "
        "(docs/mechanisms.md has those). Learning rates are the same for all and were tuned for none.\n\n"
        f"Latency is of a whole call (picture or sound prepared, encoded and answered) by ONNX Runtime with "
        f"{threads} thread{'s' * (threads > 1)} on {_processor()}: the median of rounds in which all take turns. "
        "Sizes are of the ONNX graphs of a bundle."
    )


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    name = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), None)
    return f"{name or platform.processor() or platform.machine()} ({os.cpu_count()} cores)"


def _section(task: str, plan: StudyPlan, rows: Sequence[Measured], floor: tuple[float, int], picture: str) -> str:
    measured = sorted((each for each in rows if each.forbidden is None), key=lambda each: -each.mean)
    lines = [
        f"## {_TITLES[task]}",
        "",
        f"Data: {_DATA[task]} Accuracy is of {floor[1]:,} test samples, by the model in torch; {floor[0]:.1f} % are "
        f"right without looking. At most {plan.parameters(task):,} parameters.",
        "",
        "| mechanism | fusion | accuracy, % | spread | lowest to highest | width | parameters "
        "| fp32, KB | int8, KB | fp32, ms | int8, ms |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
        *map(_row, measured),
        "",
        f"![accuracy against latency]({picture})",
        "",
        *_said(measured),
    ]
    lines += [
        f"- {each.mechanism} with {each.fusion} is refused: {each.forbidden}"
        for each in rows
        if each.forbidden is not None
    ]
    return "\n".join(lines)


def _row(each: Measured) -> str:
    spread = "–" if each.deviation is None else f"± {each.deviation:.1f}"
    cells = [
        each.mechanism,
        f"`{each.fusion}`",
        f"{each.mean:.1f}",
        spread,
        f"{min(each.accuracies):.1f} to {max(each.accuracies):.1f}",
        str(each.width),
        f"{each.parameters:,}",
        *(f"{each.bytes[precision] / 1000:,.0f}" for precision in ("fp32", "int8")),
        *(f"{each.milliseconds[precision]:.2f}" for precision in ("fp32", "int8")),
    ]
    return "| " + " | ".join(cells) + " |"


def _said(measured: Sequence[Measured]) -> list[str]:
    """What the figures support: which cannot be told from the best, and which is the fastest of those."""
    spreads = [each.deviation for each in measured if each.deviation is not None]
    if not spreads:
        return ["With one seed no difference between two rows can be told from chance."]
    best, seeds = measured[0], len(measured[0].accuracies)
    # All rows share one spread, as so few seeds say little of each alone.
    common = statistics.fmean(spread**2 for spread in spreads) ** 0.5
    margin = _SURE * common * (2 / seeds) ** 0.5
    alike = [each for each in measured if each.mean >= best.mean - margin]
    fastest = min(alike, key=lambda each: each.milliseconds["int8"])
    return [
        f"The spread over seeds, taken over all rows, is {common:.1f} points: with {seeds} seeds two rows must lie "
        f"more than {margin:.1f} points apart (two standard errors) to be told from each other; among so many rows "
        "some lie so far apart by chance.",
        "",
        f"- Highest is {_named(best)} with {best.mean:.1f} %. "
        + (
            "No other row comes within that distance."
            if len(alike) == 1
            else f"{len(alike) - 1} of {len(measured) - 1} other rows cannot be told from it: "
            + "; ".join(_named(each) for each in alike[1:])
            + "."
        ),
        f"- Of the highest and those, {_named(fastest)} takes the least time in int8: "
        f"{fastest.milliseconds['int8']:.2f} ms.",
        f"- Lowest is {_named(measured[-1])} with {measured[-1].mean:.1f} %.",
    ]


def _named(each: Measured) -> str:
    return f"{each.mechanism} with `{each.fusion}`"


def _point(each: Measured) -> Point:
    return Point(each.mechanism, each.fusion, each.milliseconds["int8"], each.mean, each.deviation or 0.0)
