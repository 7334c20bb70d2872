"""The study: one budget for all, nothing done twice, and a report that claims what its figures support."""

import dataclasses
import json
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest

from xattn_edge.attention import MECHANISMS
from xattn_edge.data.easy_vqa import EasyVqa
from xattn_edge.fusion import FUSIONS
from xattn_edge.study import StudyPlan, study
from xattn_edge.study import run as run_module
from xattn_edge.study.chart import Point, scatter
from xattn_edge.study.plan import KINDS
from xattn_edge.study.report import Measured, write_report
from xattn_edge.training import Combination
from xattn_runtime.errors import OutputError, UserError

TINY = StudyPlan(tasks=("vqa",), seeds=2, steps=2, batch=2, test_pictures=2)


@pytest.fixture
def few_pictures(monkeypatch):
    whole = EasyVqa.samples
    monkeypatch.setattr(EasyVqa, "samples", lambda data, split: whole(data, split)[:100])


@pytest.fixture
def one_combination(monkeypatch):
    chosen = (Combination(fusion="sum"),)
    monkeypatch.setattr(StudyPlan, "combinations", property(lambda plan: chosen))


class Stop(Exception):
    """Stands for a kill."""


def test_a_study_that_was_stopped_goes_on(tmp_path, few_pictures, one_combination, monkeypatch):
    """All the way: two seeds, real bundles, real times."""
    folder, report = tmp_path / "study", tmp_path / "docs" / "choosing.md"

    def stop_in_the_second(state):
        if "seed 1" in state.what:
            raise Stop

    with pytest.raises(Stop):
        study(folder, TINY, progress=stop_in_the_second)
    name = "vqa-text-to-image-sum"
    first = (folder / "runs" / f"{name}-0.json").read_text()
    assert sorted(path.name for path in (folder / "bundles").iterdir()) == [f"{name}-fp32.xattn", f"{name}-int8.xattn"]

    trained = []
    found = study(folder, TINY, report=report, progress=lambda state: trained.append(state.what))
    assert not any("seed 0: step" in what for what in trained)
    assert (folder / "runs" / f"{name}-0.json").read_text() == first
    (result,) = found.results
    assert len(result.accuracies) == 2
    assert 0 < result.parameters <= TINY.parameters("vqa")
    assert 0 < result.bytes["int8"] < result.bytes["fp32"]
    assert all(milliseconds > 0 for milliseconds in result.milliseconds.values())
    assert json.loads(json.dumps(found.to_dict()))["results"][0]["fusion"] == "sum"
    assert f"| {result.parameters:,} |" in report.read_text()
    ElementTree.parse(report.with_name("choosing-vqa.svg"))

    monkeypatch.setattr(run_module, "_milliseconds", None)
    assert study(folder, TINY, report=report).results == found.results


def test_a_study_of_another_budget_is_not_mixed_in(tmp_path):
    (tmp_path / "budget.json").write_text(json.dumps(TINY.budget()))
    with pytest.raises(OutputError, match="holds a study of another budget"):
        study(tmp_path, dataclasses.replace(TINY, steps=3))


def test_a_folder_with_something_else_is_left_alone(tmp_path):
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(OutputError, match="holds something else than a study"):
        study(tmp_path, TINY)
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"tasks": ("caption",)}, "tasks: expected some of vqa, sentiment, found caption"),
        ({"tasks": ()}, "found none"),
        ({"which": "some"}, "combinations: expected one of all, axes, found 'some'"),
        ({"seeds": 0}, "seeds: expected at least 1, found 0"),
    ],
)
def test_impossible_plans(values, message):
    with pytest.raises(UserError, match=message):
        StudyPlan(**values)


def test_what_is_compared():
    everything = StudyPlan().combinations
    assert len(everything) == len(set(everything)) == len(KINDS) * len(FUSIONS)
    assert {each.mechanism for each in everything} == set(MECHANISMS)
    axes = StudyPlan(which="axes").combinations
    assert set(axes) < set(everything)
    assert {each.mechanism for each in axes} == set(MECHANISMS)
    assert {each.fusion for each in axes} == set(FUSIONS)


def measured(mechanism: str, *accuracies: float, milliseconds: float = 1.0) -> Measured:
    return Measured(
        task="vqa",
        mechanism=mechanism,
        fusion="sum",
        accuracies=accuracies,
        width=8,
        parameters=1234,
        bytes={"fp32": 4000, "int8": 1000},
        milliseconds={"fp32": 2.0, "int8": milliseconds},
    )


def report_of(path: Path, plan: StudyPlan, *results: Measured) -> str:
    write_report(path, plan, results, {"vqa": (50.0, 200)}, 1, "xattn-edge study -o x")
    return path.read_text()


def test_what_chance_may_have_done_is_not_told_as_a_difference(tmp_path):
    rows = (
        measured("two_way", 90, 92, milliseconds=3.0),
        measured("self", 89, 91, milliseconds=1.5),
        measured("graph", 70, 72, milliseconds=1.0),
    )
    text = report_of(tmp_path / "r.md", TINY, *rows)
    # The standard deviation of each pair is √2; two standard errors of a difference of means of two are 2·√2.
    assert "the spread over seeds, taken over all rows, is 1.4 points" in text.lower()
    assert "more than 2.8 points apart" in " ".join(text.split())
    assert "Highest is two_way with `sum` with 91.0 %. 1 of 2 other rows cannot be told from it: self" in text
    assert "self with `sum` takes the least time in int8: 1.50 ms" in text
    assert "Lowest is graph" in text


def test_one_seed_tells_no_differences(tmp_path):
    plan = dataclasses.replace(TINY, seeds=1)
    text = report_of(tmp_path / "r.md", plan, measured("two_way", 90), measured("self", 10))
    assert "With one seed no difference between two rows can be told from chance" in text
    assert "Highest" not in text


def test_what_is_refused_is_told_with_the_reason(tmp_path):
    refused = Measured(task="vqa", mechanism="graph", fusion="sum", forbidden="no edges")
    assert "- graph with sum is refused: no edges" in report_of(
        tmp_path / "r.md", TINY, measured("self", 1, 2), refused
    )


def test_the_picture_has_a_dot_for_each_and_names_each_mechanism_once():
    points = [Point("a <b>", "sum", 1.0, 80.0, 1.0), Point("a <b>", "dynamic", 2.0, 90.0, 0.0)]
    root = ElementTree.fromstring(scatter("title", points, 50.0))
    name = "{http://www.w3.org/2000/svg}"
    assert len(root.findall(f"{name}g")) == 2
    assert [each.text for each in root.iter(f"{name}text")].count("a <b>") == 1
