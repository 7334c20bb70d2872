"""Bundles made for a device: what they are made of, that they answer, and where each graph would run."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from xattn_edge.commands.app import app
from xattn_export.targets import TARGETS, export_for_target, fit_of, target_of
from xattn_runtime.bundle.manifest import LOWEST_OPSET
from xattn_runtime.errors import OutputError, UserError
from xattn_runtime.verify.golden import verify_bundle


@pytest.mark.parametrize("target", TARGETS, ids=lambda target: target.name)
def test_a_row_is_what_its_provider_wants(target):
    requirements = target.row.requirements
    assert LOWEST_OPSET[target.attention] <= target.opset <= min(requirements.highest_opset, target.highest_opset)
    assert target.attention in requirements.attention
    assert target.mode.partition("-")[0] in requirements.precisions
    assert target.static_batch == requirements.static_shapes


@pytest.mark.parametrize("name", ["npu", "jetson", "android"])
def test_a_bundle_made_for_a_target_runs_there(checkpoints, tmp_path, name):
    target, output = target_of(name), tmp_path / "made.xattn"
    exported, quantized = export_for_target(checkpoints["lstm"], output, target)
    assert [path.name for path in tmp_path.iterdir()] == ["made.xattn"]
    assert (exported.attention, exported.opset) == (target.attention, target.opset)
    assert quantized.bundle == output and verify_bundle(output).passed
    report = fit_of(output, target)
    assert report.runs and report.graphs["image_encoder"].runs_on == target.provider
    classifier = report.graphs["classifier"]
    assert classifier.runs_on == ("cpu" if target.static_batch else target.provider)


def test_why_a_bundle_would_not_run(exported):
    report = fit_of(exported["caption"], target_of("npu"))
    assert not report.runs and {fit.runs_on for fit in report.graphs.values()} == {"cpu"}
    reasons = "; ".join(report.graphs["generator"].reasons)
    for words in (
        "opset 23, at most 21",
        "to be decomposed",
        "fp32, expected int8",
        "Loop",
        "axes without a size: batch",
    ):
        assert words in reasons
    old = fit_of(exported["caption"], target_of("android"))
    assert {fit.runs_on for fit in old.graphs.values()} == {None}


def test_nothing_is_left_behind_and_nothing_is_lost(checkpoints, tmp_path):
    output = tmp_path / "made.xattn"
    output.mkdir()
    (output / "mine.txt").write_text("mine")
    with pytest.raises(OutputError):
        export_for_target(checkpoints["lstm"], output, target_of("browser"))
    assert [path.name for path in tmp_path.rglob("*")] == ["made.xattn", "mine.txt"]
    with pytest.raises(UserError, match="--target: expected one of raspberry-pi"):
        target_of("toaster")
    with pytest.raises(UserError, match=r"found 'andriod'; did you mean android\?"):
        target_of("andriod")


def test_the_commands(checkpoints, exported, tmp_path):
    def call(*arguments):
        return CliRunner().invoke(app, list(map(str, arguments)), prog_name="xattn-edge")

    output = tmp_path / "pi.xattn"
    done = call("export", checkpoints["lstm"], "-o", output, "--target", "raspberry-pi", "--json")
    assert done.exit_code == 0 and json.loads(done.stdout)["quantize"]["mode"] == "int8"
    assert call("inspect", output, "--target", "raspberry-pi").exit_code == 0
    refused = call("inspect", exported["caption"], "--target", "android", "--json")
    assert refused.exit_code == 1 and json.loads(refused.stdout)["graphs"]["decoder"]["runs_on"] is None
    both = call("export", checkpoints["lstm"], "-o", tmp_path / "no", "--target", "npu", "--opset", "18")
    assert both.exit_code == 2 and "as it chooses them" in both.stderr


def test_the_documented_table():
    text = (Path(__file__).resolve().parents[2] / "docs" / "providers.md").read_text(encoding="utf-8")
    for target in TARGETS:
        row = (f"`{target.name}`", target.devices, f"`{target.provider}`", target.attention, str(target.opset))
        assert f"| {' | '.join(row)} | `{target.mode}` | {target.why} |" in text
