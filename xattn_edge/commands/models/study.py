"""`xattn-edge study`: compares mechanisms and fusions."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, cast

import typer

from xattn_edge.commands.shared.console import command, provenance_command
from xattn_edge.commands.shared.options import Debug, Json, OutputOption, Quiet, new_app
from xattn_runtime.errors import UserError

if TYPE_CHECKING:
    from xattn_edge.study.plan import TaskName

__all__ = ["app"]

app = new_app()


@app.command()
def study(
    output: OutputOption,
    tasks: Annotated[
        list[str] | None,
        typer.Option("--task", help="vqa or sentiment. Default: both."),
    ] = None,
    combinations: Annotated[
        Literal["all", "axes"],
        typer.Option(
            "--combinations",
            help="all, or axes: every mechanism with one fusion, and every fusion with one mechanism.",
        ),
    ] = "all",
    seeds: Annotated[
        int | None, typer.Option("--seeds", min=1, max=1000, help="Trainings of each. Default: 3.")
    ] = None,
    steps: Annotated[int | None, typer.Option("--steps", min=1, help="Steps of each training. Default: 600.")] = None,
    quick: Annotated[
        bool, typer.Option("--quick", help="Use one seed, few steps and the axes only: minutes instead of hours.")
    ] = False,
    report_only: Annotated[
        bool,
        typer.Option("--report-only", help="Train nothing: report the models in the folder, even if some are missing."),
    ] = False,
    report: Annotated[
        Path | None,
        typer.Option(
            "--report",
            help="Markdown file to write, or an earlier report to replace. Default: report.md in the folder.",
        ),
    ] = None,
    threads: Annotated[int, typer.Option("--threads", min=1, help="Threads within an operator.")] = 1,
    as_json: Json = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Compare every mechanism and fusion under one budget.

    Each is trained with several seeds, exported, quantized and timed. Run again
    on the same folder to resume.

    \b
    Examples:
      xattn-edge study -o runs/study --report docs/choosing.md
      xattn-edge study -o runs/quick --quick --task vqa
      xattn-edge study -o runs/study --report-only
    """
    with command(as_json=as_json, quiet=quiet, debug=debug, output=output) as console:
        from xattn_edge.study import TASKS, StudyPlan, report_study
        from xattn_edge.study import study as run_study

        if report_only and (quick or seeds or steps or combinations != "all"):
            raise UserError(
                "--report-only: takes the models in the folder; expected no --quick, --combinations, --seeds, --steps"
            )
        chosen_tasks = cast("tuple[TaskName, ...]", tuple(dict.fromkeys(tasks or TASKS)))
        plan = StudyPlan(tasks=chosen_tasks, which=combinations)
        if quick:
            plan = dataclasses.replace(plan, which="axes", seeds=1, steps=30, test_pictures=50, test_sentences=100)
        chosen: dict[str, Any] = {
            name: value for name, value in {"seeds": seeds, "steps": steps}.items() if value is not None
        }
        plan = dataclasses.replace(plan, **chosen)

        with console.progress() as progress:
            how: dict[str, Any] = {"report": report, "threads": threads, "command": provenance_command()}
            if report_only:
                study_report = report_study(output, chosen_tasks, progress=progress, **how)
            else:
                study_report = run_study(output, plan, progress=progress, **how)
        if as_json:
            console.document(study_report.to_dict())
            return
        rows: list[tuple[object, ...]] = [("task", "mechanism", "fusion", "accuracy", "int8 ms")]
        rows += [
            (each.task, each.mechanism, each.fusion, f"{each.mean:.1f}", f"{each.milliseconds['int8']:.2f}")
            for each in study_report.results
            if each.forbidden is None
        ]
        console.table(rows)
        console.line(str(study_report.report))
