"""The README's way from a training to an answer, command by command, as it is written there."""

import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

CHECKOUT = Path(__file__).resolve().parents[2]
COMMAND = [sys.executable, str(CHECKOUT / "cli.py")]


def run(arguments, folder, **options):
    return subprocess.run([*COMMAND, *arguments], cwd=folder, capture_output=True, text=True, check=False, **options)


def way_through():
    """The console block below 'Make your own'."""
    text = (CHECKOUT / "README.md").read_text().split("## Make your own")[1]
    block = re.search(r"```console\n(.*?)```", text, re.DOTALL)
    assert block
    return [shlex.split(line.removeprefix("$ xattn-edge ")) for line in block[1].splitlines()]


@pytest.mark.slow
def test_every_step_of_the_readme_runs(tmp_path):
    """Training is cut to a few steps; everything else is as written."""
    shutil.copytree(CHECKOUT / "examples", tmp_path / "examples")
    commands = way_through()
    assert [command[0] for command in commands] == [
        "train",
        "export",
        "quantize",
        "inspect",
        "verify",
        "evaluate",
        "profile",
        "vqa",
    ]
    for command in commands:
        shortened = [*command, "--steps", "20"] if command[0] == "train" else command
        result = run(shortened, tmp_path)
        assert result.returncode == 0, f"{command}: {result.stderr}"
        assert result.stdout
        assert "Traceback" not in result.stderr
    assert {path.name for path in tmp_path.iterdir()} == {"examples", "runs", "shapes.xattn", "shapes-int8.xattn"}


@pytest.fixture
def checkpoint():
    return str(CHECKOUT / "checkpoints" / "shapes-vqa")


@pytest.mark.slow
@pytest.mark.parametrize("form", [("standard", "23"), ("standard", "24"), ("decomposed", "18")])
@pytest.mark.parametrize("name", ["shapes-vqa", "emoji-caption"])
def test_trained_checkpoints_export_in_both_forms(tmp_path, name, form):
    attention, opset = form
    source = str(CHECKOUT / "checkpoints" / name)
    exported = run(["export", source, "-o", "x.xattn", "--attention", attention, "--opset", opset], tmp_path)
    assert exported.returncode == 0, exported.stderr
    inspected = run(["inspect", "x.xattn", "--strict", "--json"], tmp_path)
    assert inspected.returncode == 0
    assert ('"Attention"' in inspected.stdout) == (attention == "standard")
    assert run(["verify", "x.xattn"], tmp_path).returncode == 0


def test_an_interrupted_export_leaves_nothing(tmp_path, checkpoint):
    process = subprocess.Popen(
        [*COMMAND, "export", checkpoint, "-o", "x.xattn"], cwd=tmp_path, stderr=subprocess.PIPE, text=True
    )
    deadline = time.monotonic() + 120
    while not list(tmp_path.iterdir()) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert list(tmp_path.iterdir()), "the export never began to write"
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 130
    assert said.strip().splitlines()[-1] == "interrupted"
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("command", ["export", "quantize"])
def test_an_existing_output_is_kept(tmp_path, checkpoint, command):
    (tmp_path / "x.xattn").mkdir()
    (tmp_path / "x.xattn" / "mine.txt").write_text("mine")
    source = checkpoint if command == "export" else str(CHECKOUT / "runtime/xattn_runtime/defaults/shapes-vqa.xattn")
    result = run([command, source, "-o", "x.xattn"], tmp_path)
    assert result.returncode == 2
    assert len(result.stderr.strip().splitlines()) == 1
    assert (tmp_path / "x.xattn" / "mine.txt").read_text() == "mine"


def test_an_output_that_cannot_be_written_is_one_line(tmp_path, checkpoint):
    (tmp_path / "file").write_text("")
    result = run(["export", checkpoint, "-o", "file/x.xattn"], tmp_path)
    assert result.returncode == 2
    assert "file" in result.stderr
    assert len(result.stderr.strip().splitlines()) == 1
