"""The search for a budget: what it measures and chooses, on numbers that are made up, and a whole one on a bundle."""

import json
import math
from dataclasses import dataclass, replace

import numpy as np
import pytest
from typer.testing import CliRunner

from xattn_edge.commands.app import app
from xattn_edge.commands.shared.split import TaskSplit
from xattn_edge.evaluation.samples import Sample, Samples, halves
from xattn_export.quantize.budget.measuring import Bench, Journal, Scores
from xattn_export.quantize.budget.plot import frontier_plot
from xattn_export.quantize.budget.search import Measured, Space, candidates, frontier
from xattn_export.quantize.budget.selection import quantize_to_budget
from xattn_export.quantize.modes import table
from xattn_export.quantize.modes.fp32 import FP32
from xattn_export.quantize.modes.int8 import INT8
from xattn_runtime.bundle.folder import open_bundle
from xattn_runtime.errors import OutputError, UserError, XattnError
from xattn_runtime.verify.golden import verify_bundle

SPACE = Space(
    {"encoder": ("int8", "int4"), "decoder": ("int8", "int4")},
    {role: [f"{role}{i}" for i in range(6)] for role in ("encoder", "decoder")},
    {"int8": "fp32", "int4": "int8"},
)
SIZES = {"fp32": 100, "int8": 26, "int4": 15}


def made_up(losses):
    """Measures a mix by the sum of its parts' losses; remembers what was asked for."""
    asked = []

    def measure(components):
        asked.append(dict(components))
        roles = {role: components.get(role, "fp32") for role in SPACE.modes}
        loss = sum(losses.get((role, mode), 0.0) for role, mode in roles.items())
        loss += sum(losses.get(part, 0.0) for part in components.items() if "/" in part[0])
        size = sum(SIZES[mode] for mode in roles.values())
        return Measured(components, 1 - loss, loss, size, size / 200, size)

    return measure, asked


def found_by(losses, budget=0.01):
    measure, asked = made_up(losses)
    return list(candidates(SPACE, budget, "size", measure)), asked


def test_the_smallest_mix_within_the_budget():
    found, asked = found_by({("encoder", "int4"): 0.2, ("decoder", "int4"): 0.005, ("encoder", "int8"): 0.001})
    best = frontier(found, 0.01, "size")[0]
    assert best.components == {"encoder": "int8", "decoder": "int4"}
    assert {"encoder": "int4", "decoder": "int4"} not in asked  # it is known to lose far too much


def test_layers_that_cost_most_stay_more_precise():
    losses = {("encoder", "int4"): 0.004, ("decoder", "int4"): 0.012, ("decoder/decoder3", "int4"): 0.011}
    losses[("decoder/decoder3", "int8")] = -0.011  # what raising it gives back
    found, asked = found_by(losses)
    assert {f"decoder/decoder{i}": "int4" for i in range(1)} in asked
    raised = {"encoder": "int4", "decoder": "int4", "decoder/decoder3": "int8"}
    assert found[-1].components == raised and found[-1].loss <= 0.01


def test_a_mix_that_is_slower_and_larger_is_not_recommended():
    one = Measured({"a": "int8"}, 1, 0.0, 50, 0.5, 10)
    worse = Measured({"a": "int4"}, 1, 0.0, 60, 0.9, 5)
    as_fast = Measured({"b": "int4"}, 1, 0.0, 60, 0.51, 5)
    assert frontier([one, worse, as_fast], 0.01, "memory") == [as_fast, one]
    assert frontier([replace(one, loss=0.02)], 0.01, "size") == []


@dataclass
class Planned:
    """A split on which bundles score what the test says, by their place among those asked."""

    name: str
    examples: Samples
    values: list[float]

    def scores(self, bundle):
        value = self.values.pop(0) if len(self.values) > 1 else self.values[0]
        return Scores("accuracy", [value] * 4)


def samples(count=2):
    image = np.full((20, 20, 3), 120, np.uint8)
    return Samples("made", [Sample(image, "what color is the shape ?", "red")] * count)


@pytest.fixture
def quick(monkeypatch):
    monkeypatch.setattr(table, "MODES", (FP32, INT8))
    monkeypatch.setattr("xattn_export.quantize.budget.measuring.peak_memory_bytes", lambda path: 2**20)


def test_a_whole_search(quick, exported, reads, once, tmp_path):
    bundle, output = open_bundle(exported["lstm"]), tmp_path / "small.xattn"
    split = TaskSplit(Samples("made", [replace(one, reference=None) for one in samples().items]), bundle)
    told = []
    with reads(bundle.path) as counts:
        report = quantize_to_budget(bundle.path, output, split, split, budget=0.5, on_measured=told.append)
    assert counts == once(bundle.path)  # whatever number of mixes was made of them
    assert report.metric == "agreement" and report.chosen.components == {"image_encoder": "int8", "classifier": "int8"}
    assert report.size_ratio < 0.7 and len(told) == len(report.measured) >= 4
    assert verify_bundle(output).passed
    record = json.loads((output / "manifest.json").read_text())["quantization"]["search"]
    assert record["confirmed"]["loss"] == report.unseen_loss and record["budget"] == 0.5
    assert [path.name for path in tmp_path.iterdir()] == ["small.xattn"]
    svg = frontier_plot(report.measured, report.frontier, 0.5, report.metric)
    assert svg.count("<circle") == len(report.measured) and svg.startswith("<svg")


def test_a_search_that_was_killed_goes_on(quick, exported, tmp_path):
    source, output = exported["lstm"], tmp_path / "small.xattn"

    class Killed(Exception):
        pass

    def kill_at_third(measured, told=[]):  # noqa: B006
        told.append(measured)
        if len(told) == 3:
            raise Killed

    split = Planned("made", samples(), [0.5])
    with pytest.raises(Killed):
        quantize_to_budget(source, output, split, split, budget=0.1, on_measured=kill_at_third)
    journal = tmp_path / ".small.xattn.search.jsonl"
    assert len(journal.read_text().splitlines()) == 4 and not output.exists()
    with journal.open("a") as stream:
        stream.write('{"components": {"image_enc')  # the line that was being written
    calls = []
    split.scores = lambda bundle: calls.append(bundle) or Scores("accuracy", [0.5] * 4)
    report = quantize_to_budget(source, output, split, split, budget=0.1)
    assert len(report.measured) == 4 and len(calls) == 2 + 2  # a mix and what it is compared with; then both unseen


def test_a_choice_is_confirmed_on_what_the_search_has_not_seen(quick, exported, tmp_path):
    calibration = Planned("seen", samples(), [1.0])
    unseen = Planned("unseen", samples(), [1.0, 0.5])
    with pytest.raises(XattnError, match=r"unseen: expected a mix that loses at most 10.00% .* with 50.00%"):
        quantize_to_budget(exported["lstm"], tmp_path / "out.xattn", calibration, unseen, budget=0.1)
    assert not (tmp_path / "out.xattn").exists()


def test_what_fails_on_unseen_samples_stands_in_nobodys_way(quick, exported, tmp_path, monkeypatch):
    """Both components in int8 are smaller and faster than either alone, which is taken all the same."""

    def faster_by_every_int8(bench, small):
        return 1 / [graph.precision for graph in small.manifest.graphs.values()].count("int8")

    monkeypatch.setattr(Bench, "_time", faster_by_every_int8)
    unseen = Planned("unseen", samples(), [1.0, 0.5, 0.95])
    report = quantize_to_budget(
        exported["lstm"], tmp_path / "out.xattn", Planned("seen", samples(), [1.0]), unseen, budget=0.1
    )
    assert len(report.chosen.components) == 1 and report.unseen_loss == pytest.approx(0.05)
    assert report.chosen in report.frontier and all(len(one.components) == 1 for one in report.frontier)


def test_budgets_that_cannot_be(quick, exported, tmp_path):
    split, output = Planned("made", samples(), [1.0, 0.9]), tmp_path / "out.xattn"
    for budget in (-0.1, 1.0, math.nan):
        with pytest.raises(UserError, match="--budget: expected a share of at least 0"):
            quantize_to_budget(exported["lstm"], output, split, split, budget=budget)
    with pytest.raises(XattnError, match=r"expected a mix that loses at most 0.00%, found none"):
        quantize_to_budget(exported["lstm"], output, split, split, budget=0.0)
    assert {path.name for path in tmp_path.iterdir()} == {".out.xattn.search.jsonl"}  # for a try with another budget
    nothing = Planned("made", samples(), [0.0])
    with pytest.raises(UserError, match="expected a bundle that scores above 0"):
        quantize_to_budget(exported["lstm"], tmp_path / "other.xattn", nothing, nothing, budget=0.1)


def test_modes_that_fail_leave_nothing_but_what_was_measured(quick, exported, tmp_path, monkeypatch):
    def fail(*arguments, **options):
        raise XattnError("no such kernel")

    monkeypatch.setattr("xattn_export.quantize.budget.measuring.write_quantized", fail)
    split = Planned("made", samples(), [1.0])
    with pytest.raises(XattnError, match="expected modes that this bundle can have, found none: no such kernel"):
        quantize_to_budget(exported["lstm"], tmp_path / "out.xattn", split, split, budget=0.1)
    assert {path.name for path in tmp_path.iterdir()} == {".out.xattn.search.jsonl"}


def test_nothing_to_search(vqa_bundle, tmp_path):
    split = Planned("made", samples(), [1.0])
    with pytest.raises(UserError, match="expected layers that a search can make smaller, found none"):
        quantize_to_budget(vqa_bundle, tmp_path / "out.xattn", split, split, budget=0.1)
    assert not list(tmp_path.iterdir())


def test_a_journal_of_another_search_is_begun_anew(tmp_path):
    first = Journal.open(tmp_path / "a.xattn", {"source": "1"})
    first.add(Measured({"a": "int8"}, 1, 0, 1, 1, 1))
    assert len(Journal.open(tmp_path / "a.xattn", {"source": "1"}).known) == 1
    assert not Journal.open(tmp_path / "a.xattn", {"source": "2"}).known
    own = tmp_path / ".b.xattn.search.jsonl"
    own.write_bytes(b"my notes \xff")
    with pytest.raises(OutputError, match=r"search\.jsonl: expected the measurements of a search, found another file"):
        Journal.open(tmp_path / "b.xattn", {"source": "1"})
    assert own.read_bytes() == b"my notes \xff"


def test_the_command(exported, tmp_path):
    def call(*arguments):
        return CliRunner().invoke(app, ["quantize", *map(str, arguments)], prog_name="xattn-edge")

    place = (exported["lstm"], "-o", tmp_path / "out.xattn")
    assert "give both" in call(*place, "--mode", "auto", "--budget", "0.1").stderr
    assert "--mode auto beside it" in call(*place, "--budget", "0.1").stderr
    assert "it chooses the modes" in call(*place, "--mode", "auto", "--component", "classifier=int8").stderr
    assert "too few" in call(*place, "--mode", "auto", "--budget", "0.1", "--data", "golden").stderr
    assert "expected data for vqa" in call(*place, "--mode", "auto", "--budget", "0.1", "--data", "emoji").stderr
    assert not (tmp_path / "out.xattn").exists()


def test_a_folder_of_images_is_halved(exported, tmp_path):
    from PIL import Image

    for number in range(5):
        Image.new("RGB", (9, 9), (number * 40, 0, 0)).save(tmp_path / f"{number}.png")
    first, second = halves(open_bundle(exported["lstm"]), str(tmp_path), 10)
    assert (len(first.items), len(second.items)) == (2, 3)
    assert not {one.image for one in first.items} & {one.image for one in second.items}
