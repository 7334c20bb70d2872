"""`xattn-edge study`: what it hands on, and what it prints."""

import json

import pytest

from xattn_edge.study import StudyPlan, StudyReport
from xattn_edge.study.measured import CombinationResult


@pytest.fixture
def studied(stand_in):
    seen = []

    def study(folder, plan, **options):
        seen.append((folder, plan, options))
        told = {"task": "vqa", "mechanism": "self", "fusion": "sum", "accuracies": (80.0, 90.0)}
        row = CombinationResult(**told, bytes={"fp32": 2, "int8": 1}, milliseconds={"fp32": 2.0, "int8": 1.25})
        return StudyReport(folder / "report.md", plan, (row,))

    def report_study(folder, tasks, **options):
        return study(folder, StudyPlan(tasks=tasks), tasks=tasks, **options)

    stand_in("xattn_edge.study", study=study, report_study=report_study)
    return seen


def test_all_and_quick(invoke, tmp_path, studied):
    assert invoke("study", "-o", tmp_path).exit_code == 0
    assert invoke("study", "-o", tmp_path, "--quick", "--task", "vqa", "--seeds", "2").exit_code == 0
    (_, whole, _), (_, quick, _) = studied
    assert (whole.which, whole.seeds, whole.tasks) == ("all", 3, ("vqa", "sentiment"))
    assert (quick.which, quick.seeds, quick.tasks) == ("axes", 2, ("vqa",))
    assert quick.steps < whole.steps


def test_what_is_printed(invoke, tmp_path, studied):
    text = invoke("study", "-o", tmp_path).stdout
    assert "self" in text
    assert "85.0" in text
    assert text.splitlines()[-1] == str(tmp_path / "report.md")
    document = json.loads(invoke("study", "-o", tmp_path, "--json").stdout)
    assert document["results"][0]["accuracies"] == [80.0, 90.0]


def test_a_report_alone(invoke, tmp_path, studied):
    report = tmp_path / "choosing.md"
    result = invoke("study", "-o", tmp_path, "--report-only", "--task", "vqa", "--report", report)
    assert result.exit_code == 0
    ((folder, _, options),) = studied
    assert (folder, options["tasks"], options["report"]) == (tmp_path, ("vqa",), report)


def test_mistakes(invoke, tmp_path, studied):
    result = invoke("study", "-o", tmp_path, "--task", "caption")
    assert result.exit_code == 2
    assert "caption" in result.stderr
    assert not studied
    result = invoke("study", "-o", tmp_path, "--report-only", "--seeds", "2")
    assert result.exit_code == 2
    assert "expected no --quick, --combinations, --seeds, --steps" in result.stderr
    assert not studied
