"""The edge where errors become one line: kinds of error, exit codes, interruption, and streams that break."""

import errno
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.processes import children_of, wait_until
from xattn_runtime.errors import CheckpointError, OutputError, VerificationError, XattnError

EXPORT = ("export", "checkpoint", "-o", "out.xattn")


def _os_error(number: int, *names: str) -> OSError:
    return OSError(number, "what the system says", *names)


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (OutputError("out.xattn: exists"), 2, "out.xattn: exists"),
        (CheckpointError("two\nlines"), 2, "two lines"),
        (VerificationError("it differs"), 1, "it differs"),
        (XattnError("ours"), 1, "ours"),
        (_os_error(errno.ENOTDIR, "/there"), 2, "/there: what the system says; check the path"),
        (_os_error(errno.ENOSPC), 2, "out.xattn: what the system says; free some space or name another place"),
        (_os_error(errno.EEXIST, "/there"), 2, "/there: what the system says; name another place"),
        (_os_error(errno.EIO, "/there"), 1, "/there: what the system says"),
        (MemoryError(), 1, "not enough memory; close other programs or use a smaller input"),
        (ValueError("odd"), 1, "internal error: ValueError: odd; run again with --debug"),
        (
            ModuleNotFoundError("No module", name="onnx.helper"),
            2,
            'onnx.helper: not installed, and this command needs it; run pip install "xattn-edge[export]"',
        ),
        (
            ModuleNotFoundError("No module", name="ours"),
            1,
            "internal error: ModuleNotFoundError: No module; run again with --debug",
        ),
    ],
)
def test_an_error_is_one_line_and_a_code(invoke, stand_in, error, code, line):
    def fail(*arguments: object, **options: object) -> None:
        raise error

    stand_in("xattn_export", export_checkpoint=fail)
    result = invoke(*EXPORT)
    assert (result.exit_code, result.stdout, result.stderr) == (code, "", f"error: {line}\n")
    with_traceback = invoke(*EXPORT, "--debug")
    assert with_traceback.exit_code == code
    assert with_traceback.stderr.startswith("Traceback")
    assert with_traceback.stderr.endswith(f"error: {line}\n")


@pytest.mark.parametrize(
    ("arguments", "module", "function"),
    [
        (EXPORT, "xattn_export", "export_checkpoint"),
        (("quantize", "a.xattn", "-o", "b.xattn"), "xattn_export", "quantize_bundle"),
        (("train", "vqa", "-o", "checkpoint"), "xattn_edge.training", "train"),
        (("evaluate", "a.xattn", "--data", "emoji"), "xattn_edge.evaluation", "evaluate"),
        (("data", "fetch", "emoji"), "xattn_edge.data", "fetch"),
    ],
    ids=lambda value: value[0] if isinstance(value, tuple) else value,
)
def test_ctrl_c_is_one_line_and_130(invoke, stand_in, arguments, module, function):
    def interrupt(*positional: object, **options: object) -> None:
        raise KeyboardInterrupt

    stand_in(module, **{function: interrupt})
    result = invoke(*arguments)
    assert (result.exit_code, result.stdout, result.stderr) == (130, "", "interrupted\n")


def test_a_package_that_is_missing(tmp_path):
    script = "import sys; sys.modules['onnx'] = None; from xattn_edge.commands.app import run; sys.exit(run())"
    command = [sys.executable, "-c", script, "quantize", "shapes-vqa", "-o", str(tmp_path / "small.xattn")]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (result.returncode, result.stdout) == (2, ""), result.stderr
    assert result.stderr.count("\n") == 1
    assert 'pip install "xattn-edge[export]"' in result.stderr


def test_control_characters_do_not_reach_the_terminal(invoke, caption_bundle):
    result = invoke("caption", "\x1b[31mred\nline.png", "-b", caption_bundle)
    assert result.exit_code == 2
    assert result.stderr.count("\n") == 1
    assert "\x1b" not in result.stderr


@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
def test_ctrl_c_while_a_process_is_at_work(spawn, vqa_bundle):
    process = spawn("profile", vqa_bundle, "--runs", "10000000")
    wait_until(lambda: children_of(process.pid))
    process.send_signal(signal.SIGINT)
    output, errors = process.communicate(timeout=30)
    assert (process.returncode, errors.splitlines()[-1]) == (130, "interrupted")
    # What had been measured by then, if anything, is told.
    assert output == "" or output.startswith("bundle")


@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
@pytest.mark.parametrize("workers", [1, 2])
def test_ctrl_c_in_tuning_leaves_the_folder_as_it_was(spawn, caption_copy, workers):
    before = sorted(caption_copy.parent.iterdir())
    process = spawn("tune", caption_copy, "--time-budget", "600", start_new_session=True)
    wait_until(lambda: len(children_of(process.pid)) >= workers)
    os.killpg(process.pid, signal.SIGINT)
    _, errors = process.communicate(timeout=30)
    assert (process.returncode, errors.splitlines()[-1]) == (130, "interrupted")
    assert sorted(caption_copy.parent.iterdir()) == before


def test_a_reader_that_goes_away_is_no_error(spawn, caption_bundle, picture):
    reader, writer = os.pipe()
    os.close(reader)
    with spawn("caption", picture, picture, "-b", caption_bundle, stdout=writer) as process:
        os.close(writer)
        assert process.stderr.read() == ""
        assert process.wait(timeout=60) == 1


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_an_answer_that_cannot_be_written(spawn, vqa_bundle, picture):
    with open("/dev/full", "w") as full:  # noqa: PTH123 - a device, not a file
        process = spawn("vqa", picture, "what is the cat", "-b", vqa_bundle, stdout=full)
        _, errors = process.communicate(timeout=30)
    assert process.returncode == 2
    assert errors == "error: standard output: no space left on device; free some space or name another place\n"


def test_an_answer_is_valid_json_whatever_the_encoding(spawn, vqa_bundle, picture, monkeypatch):
    monkeypatch.setenv("PYTHONIOENCODING", "ascii")
    output, errors = spawn("vqa", picture, "what is the 猫", "-b", vqa_bundle, "--json").communicate(timeout=30)
    assert json.loads(output)["question"] == "what is the 猫"
    assert errors.count("\n") == 1


def test_starting_loads_nothing_heavy():
    """What each stage of a start may not have loaded."""
    script = """
import sys
def loaded(*names): return [name for name in names if name in sys.modules]
import xattn_edge, xattn_edge.commands
assert not loaded("typer", "rich", "numpy", "onnxruntime", "torch"), loaded("typer", "rich", "numpy")
from xattn_edge.commands.app import app
from typer.testing import CliRunner
heavy = ("pydantic", "rich", "numpy", "PIL", "tokenizers", "onnxruntime", "onnx", "torch", "transformers")
before = loaded(*heavy)
from typer.main import get_command
try:
    get_command(app).main(["vqa", "--help"], prog_name="xattn-edge")
except SystemExit as end:
    assert end.code == 0
assert loaded(*heavy) == before, loaded(*heavy)
assert not loaded("numpy", "onnxruntime", "torch", "onnx"), loaded(*heavy)
"""
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr


def test_answering_loads_neither_torch_nor_onnx_nor_rich(vqa_bundle, picture):
    script = """
import sys
from xattn_edge.commands.app import run
assert run() == 0
heavy = [name for name in ("torch", "onnx", "transformers", "rich", "pydantic") if name in sys.modules]
assert not heavy, heavy
"""
    command = [sys.executable, "-c", script, "vqa", str(picture), "what is the cat", "-b", str(vqa_bundle)]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
