"""The study: one budget for all, nothing done twice, and a report that claims what its figures support."""

import dataclasses
import json
import random
import re
import statistics
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest

from xattn_edge.attention import MECHANISMS
from xattn_edge.attention.similarity import SIMILARITIES
from xattn_edge.attention.weighting import WEIGHTINGS
from xattn_edge.data.easy_vqa import EasyVqa
from xattn_edge.fusion import FUSIONS
from xattn_edge.study import StudyPlan, report_study, study
from xattn_edge.study import run as run_module
from xattn_edge.study.chart import Point, scatter
from xattn_edge.study.effects import Spread, effects_of
from xattn_edge.study.measured import CombinationResult
from xattn_edge.study.plan import KINDS, described
from xattn_edge.study.report import write_report
from xattn_edge.study.subjects import _spread, make_subject
from xattn_edge.training import Combination
from xattn_runtime.errors import OutputError, UserError

TINY = StudyPlan(tasks=("vqa",), seeds=2, steps=2, batch=2, test_pictures=2)


@pytest.fixture
def few_images(monkeypatch):
    whole = EasyVqa.samples
    monkeypatch.setattr(EasyVqa, "samples", lambda data, split: whole(data, split)[:100])


@pytest.fixture
def one_combination(monkeypatch):
    chosen = (Combination(fusion="sum"),)
    monkeypatch.setattr(StudyPlan, "combinations", property(lambda plan: chosen))


class Stop(Exception):
    """Stands for a kill."""


@pytest.mark.slow
def test_a_study_that_was_stopped_goes_on(tmp_path, few_images, one_combination, monkeypatch):
    """All the way: two seeds, real bundles, real times."""
    folder, report = tmp_path / "study", tmp_path / "docs" / "choosing.md"

    def stop_in_the_second(what, _share):
        if "seed 1" in what:
            raise Stop

    with pytest.raises(Stop):
        study(folder, TINY, progress=stop_in_the_second)
    name = "vqa-text-to-image-sum"
    first = (folder / "runs" / f"{name}-0.json").read_text()
    assert sorted(path.name for path in (folder / "bundles").iterdir()) == [f"{name}-fp32.xattn", f"{name}-int8.xattn"]

    trained = []
    found = study(folder, TINY, report=report, progress=lambda what, _share: trained.append(what))
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


@pytest.mark.slow
def test_times_of_another_number_of_threads_are_taken_anew(tmp_path, few_images, one_combination, monkeypatch):
    folder, plan = tmp_path / "study", dataclasses.replace(TINY, seeds=1)
    study(folder, plan)
    monkeypatch.setattr(run_module, "_milliseconds", lambda call: 7.0)
    assert study(folder, plan).results[0].milliseconds["int8"] != 7.0
    assert study(folder, plan, threads=2).results[0].milliseconds == {"fp32": 7.0, "int8": 7.0}


@pytest.fixture
def partly_done(tmp_path, few_images, monkeypatch):
    """Two combinations with two seeds, one with one, one refused, none of sentiment; nothing is trained or timed."""
    folder = tmp_path / "study"
    (folder / "runs").mkdir(parents=True)
    (folder / "budget.json").write_text(json.dumps(TINY.budget()))
    done = {"width": 8, "parameters": 9, "fp32_bytes": 4000, "int8_bytes": 1000}

    def write(name, *accuracies):
        for seed, accuracy in enumerate(accuracies):
            path = folder / "runs" / f"vqa-{name}-{seed}.json"
            path.write_text(json.dumps(done | {"accuracy": accuracy}))

    write("two-way-sum", 80.0, 82.0)
    write("two-way-concatenation", 70.0, 72.0)
    write("text-to-image-hard-sum", 60.0)
    (folder / "runs" / "vqa-graph-sum-0.json").write_text(json.dumps({"forbidden": "no edges"}))
    monkeypatch.setattr(run_module, "_milliseconds", lambda call: 1.5)
    return folder


def test_a_report_of_what_there_is_says_how_much_that_is(partly_done, tmp_path):
    subject = make_subject("vqa", TINY)
    subject.call = lambda bundle, threads: bundle.name
    path = tmp_path / "r.md"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(run_module, "make_subject", lambda task, plan: subject)
        found = report_study(partly_done, report=path)
    assert {(each.mechanism, each.fusion): each.accuracies for each in found.results} == {
        ("text_to_image, hard", "sum"): (60.0,),
        ("two_way", "concatenation"): (70.0, 72.0),
        ("two_way", "sum"): (80.0, 82.0),
        ("graph", "sum"): (),
    }
    text = path.read_text()
    assert (
        "90 combinations of mechanism and fusion 3 are measured: 2 with 2 seeds, 1 with 1 seed. 1 is refused." in text
    )
    assert "Of one seed alone nothing is known of the spread." in text
    assert "`text_to_image, hard`, `graph` with any fusion but `sum`" in text
    assert "`two_way` with any fusion but `concatenation`, `sum`" in text
    assert "Not measured: sentiment of words, speech and frames." in text
    assert "| text_to_image, hard | – | 60.0 | – |" in text
    assert not path.with_name("r-sentiment.svg").exists()


def test_there_must_be_something_to_report(tmp_path, partly_done):
    with pytest.raises(UserError, match=r"expected a study, found no budget\.json"):
        report_study(tmp_path / "none")
    with pytest.raises(UserError, match="expected runs of sentiment, found none"):
        report_study(partly_done, ("sentiment",))


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
    assert {each.weighting for each in everything} == set(WEIGHTINGS)
    assert {each.similarity for each in everything} == set(SIMILARITIES) - {"dot"}
    axes = StudyPlan(which="axes").combinations
    assert set(axes) < set(everything)
    assert {each.mechanism for each in axes} == set(MECHANISMS)
    assert {each.fusion for each in axes} == set(FUSIONS)


def test_sentences_to_test_are_taken_from_the_whole_file():
    """In it the approving ones come first."""
    rows = list(range(1689))
    assert _spread(rows, 2000) == rows
    chosen = _spread(rows, 100)
    assert len(set(chosen)) == 100
    assert abs(statistics.fmean(chosen) - statistics.fmean(rows)) < 17


def measured(mechanism: str, *accuracies: float, milliseconds: float = 1.0, fusion: str = "sum") -> CombinationResult:
    return CombinationResult(
        task="vqa",
        mechanism=mechanism,
        fusion=fusion,
        accuracies=accuracies,
        width=8,
        parameters=1234,
        bytes={"fp32": 4000, "int8": 1000},
        milliseconds={"fp32": 2.0, "int8": milliseconds},
    )


def report_of(path: Path, plan: StudyPlan, *results: CombinationResult) -> str:
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
    assert "The spread over seeds, taken over all combinations, is 1.4 points" in text
    assert "more than 2.8 points apart" in text
    assert "Highest is two_way with `sum` with 91.0 %. 1 of 2 others cannot be distinguished from it: self" in text
    lines = text.partition("### Every combination")[2].splitlines()
    assert [line.split(" | ")[6] for line in lines if "`sum`" in line] == ["is it", "no", "yes"]
    assert "self with `sum` takes the least time in int8: 1.50 ms" in text
    assert "Lowest is graph" in text


def test_one_seed_tells_no_differences(tmp_path):
    plan = dataclasses.replace(TINY, seeds=1)
    text = report_of(tmp_path / "r.md", plan, measured("two_way", 90), measured("self", 10))
    assert "With one seed no difference between two combinations can be distinguished from chance" in text
    assert text.count("| – |") >= 1
    assert "Highest" not in text


def grid(effect, *, seeds=(0.0,), mechanisms=10, fusions=9):
    """A full grid: what `effect` says of a mechanism and a fusion, and what a seed adds to all."""
    return {
        (f"m{i}", f"f{j}"): [50 + effect(i, j, s) + seed for s, seed in enumerate(seeds)]
        for i in range(mechanisms)
        for j in range(fusions)
    }


def test_effects_that_only_add_up_are_sure():
    """What is common to a seed, a mechanism or a fusion makes no mean uncertain."""
    for seeds in ((0.0,), (-3.0, 0.0, 3.0)):
        found = effects_of(grid(lambda i, j, _: i + 10.0 * j, seeds=seeds))
        assert found.mechanisms.half_interval == pytest.approx(0.0, abs=1e-9)
        assert found.fusions.half_interval == pytest.approx(0.0, abs=1e-9)
        assert (found.mechanisms.highest, found.fusions.highest) == ("m9", "f8")
        assert found.mechanisms.means["m9"] - found.mechanisms.means["m0"] == pytest.approx(9.0)
        # Variance of 0…9 and of ten times 0…8, of both together.
        parts = statistics.pvariance(range(10)), 100 * statistics.pvariance(range(9))
        assert found.shares == pytest.approx((parts[0] / sum(parts), parts[1] / sum(parts), 0.0), abs=1e-9)


def test_intervals_are_those_of_the_analysis_of_variance():
    """Two mechanisms that change places from seed to seed: by hand."""
    cells = {("a", "x"): [10, 14], ("a", "y"): [20, 24], ("b", "x"): [12, 12], ("b", "y"): [22, 22]}
    found = effects_of(cells)
    # Means by seed: a 15, 19; b 17, 17. Left over of the two-way table: ±1 in each of 4 cells, 1 degree of freedom, so
    # that a mean of two seeds has the standard error √(4 / 1 / 2).
    assert found.mechanisms.means == {"a": 17, "b": 17}
    assert found.mechanisms.least_difference == pytest.approx(found.mechanisms.half_interval * 2**0.5)
    assert found.mechanisms.half_interval / 2**0.5 == pytest.approx(12.7, rel=0.25)
    assert found.fusions.half_interval == pytest.approx(0.0, abs=1e-9)


def test_means_are_of_full_rows_alone():
    cells = grid(lambda i, j, _: float(i))
    del cells["m9", "f0"]
    assert "m9" not in effects_of(cells).mechanisms.means
    axes = {place: values for place, values in cells.items() if "m0" in place or "f0" in place}
    assert effects_of(axes) is None


def test_the_grid_says_what_goes_with_mechanism_and_fusion(tmp_path):
    chance = random.Random(0)
    rows = [
        measured(
            described(each),
            *(60 + 5 * (each.fusion == "sum") + chance.gauss(0, 0.2) for _ in range(2)),
            fusion=each.fusion,
        )
        for each in StudyPlan().combinations
    ]
    text = report_of(tmp_path / "r.md", TINY, *rows)
    assert "Of 90 combinations of mechanism and fusion 90 are measured: 90 with 2 seeds. All answer" in text
    assert re.search(r"- Fusions, over all mechanisms: `sum` is highest with 6[45]\.\d %; lower:", text)
    assert re.search(r"9\d % with the fusion", text)
    assert "others cannot be distinguished from it" in text
    assert "combinations do no better" not in text


def test_what_is_no_better_than_not_looking_is_told(tmp_path):
    text = report_of(tmp_path / "r.md", TINY, measured("self", 49, 50), measured("graph", 70, 71))
    assert "50.0 % are right without looking, and 1 of 2 combinations do no better" in text


def test_spread_counts_every_seed_once():
    spread = Spread.of([[1.0, 3.0], [0.0, 0.0, 0.0], [9.0]])
    assert spread.deviation == pytest.approx((2 / 3) ** 0.5)
    assert spread.margin([1.0], [1.0]) == pytest.approx(2 * (2 * 2 / 3) ** 0.5)
    assert Spread.of([[1.0], [2.0]]) is None


def test_what_is_refused_is_told_with_the_reason(tmp_path):
    refused = CombinationResult(task="vqa", mechanism="graph", fusion="sum", forbidden="no edges")
    assert "- graph with sum is refused: no edges" in report_of(
        tmp_path / "r.md", TINY, measured("self", 1, 2), refused
    )


def test_the_chart_has_a_dot_for_each_and_names_each_mechanism_once():
    points = [Point("a <b>", "sum", 1.0, 80.0, 1.0), Point("a <b>", "dynamic", 2.0, 90.0, 0.0)]
    root = ElementTree.fromstring(scatter("title", points, 50.0))
    name = "{http://www.w3.org/2000/svg}"
    assert len(root.findall(f"{name}g")) == 2
    assert [each.text for each in root.iter(f"{name}text")].count("a <b>") == 1
