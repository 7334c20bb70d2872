"""Every command explains itself, with examples that parse, and takes the options that all of them take."""

import json
import re
import shlex
import sys

import pytest

from xattn_edge.commands.app import COMMANDS
from xattn_runtime.bundle.folder import shipped_bundles

LEAVES = [(name,) for name in COMMANDS if name != "data"] + [("data", "fetch"), ("data", "list")]


@pytest.mark.parametrize("path", [(), ("data",), *LEAVES], ids=" ".join)
@pytest.mark.parametrize("flag", ["--help", "-h"])
def test_help(invoke, path, flag):
    result = invoke(*path, flag)
    assert (result.exit_code, result.stderr) == (0, "")
    assert "Usage: " in result.stdout


@pytest.mark.parametrize("path", [(), *LEAVES], ids=" ".join)
def test_examples_parse(invoke, parse, path):
    text = invoke(*path, "--help").stdout
    examples = [line.strip() for line in text.splitlines() if line.startswith("    xattn-edge ")]
    assert examples, "no example in the help"
    for example in examples:
        arguments = shlex.split(example)[1:]
        assert tuple(arguments[: len(path)]) == path
        if arguments != ["COMMAND", "--help"]:
            parse(arguments)


@pytest.mark.parametrize("path", LEAVES, ids=" ".join)
def test_every_command_takes_the_common_options(invoke, path):
    text = invoke(*path, "--help").stdout
    assert all(re.search(rf"{option}\b", text) for option in ("--json", "--quiet", "--debug"))


def test_commands_are_listed_in_the_order_of_the_work(invoke):
    listed = re.findall(r"^  ([a-z]+)  ", invoke("--help").stdout.partition("Commands:")[2], re.MULTILINE)
    assert tuple(listed) == tuple(COMMANDS)


def test_a_listed_command_is_not_cut_short(invoke):
    assert "..." not in invoke("--help").stdout.partition("Commands:")[2]


def test_without_a_command_the_help_goes_to_standard_error(invoke):
    result = invoke()
    assert (result.exit_code, result.stdout) == (2, "")
    assert "Commands:" in result.stderr


def test_the_bundles_that_came_with_the_package_are_named(invoke):
    named = re.findall(r"came with this package:([^.]*)\.", invoke("--help").stdout.replace("-\n  ", "-"))
    assert [name.strip() for name in named[0].split(",")] == list(shipped_bundles())
    listed = json.loads(invoke("data", "list", "--json").stdout)["bundles"]
    assert {entry["name"]: entry["path"] for entry in listed} == {k: str(v) for k, v in shipped_bundles().items()}
    assert {entry["task"] for entry in listed} == {"caption", "retrieval", "sentiment", "vqa"}


@pytest.mark.parametrize("name", ["shapes-vqa", "shapes-vqa.xattn"])
@pytest.mark.parametrize("command", ["inspect", "verify"])
def test_a_bundle_is_found_by_its_name_without_onnx(invoke, monkeypatch, tmp_path, name, command):
    """As on a device, where neither the exporter nor what it imports is installed."""
    monkeypatch.chdir(tmp_path)
    for module in ("onnx", "torch", "xattn_export"):
        monkeypatch.setitem(sys.modules, module, None)
    result = invoke(command, name)
    assert (result.exit_code, result.stderr) == (0, "")
    assert "classifier" in result.stdout or "golden case" in result.stdout


def test_version(invoke):
    result = invoke("--version")
    assert result.exit_code == 0
    assert re.fullmatch(r"xattn-edge \S+\n", result.stdout)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["vqaa"], "error: No such command 'vqaa'; the nearest is 'vqa'; see `xattn-edge --help`"),
        (["nothing-like-it"], "error: No such command 'nothing-like-it'; see `xattn-edge --help`"),
        (["--nope"], "error: No such option: --nope; see `xattn-edge --help`"),
        (["vqa"], "error: Missing argument 'IMAGE'; see `xattn-edge vqa --help`"),
        (["data", "fetch", "coco"], "see `xattn-edge data fetch --help`"),
        (["vqa", "a.png", "why?", "--top-k", "0"], "--top-k"),
        (["caption", "a.png", "--threads", "two"], "--threads"),
        (["train", "poetry", "-o", "out"], "vqa"),
        (["export", "in", "-o", "out", "--attention", "linear"], "decomposed"),
        (["profile", "a.xattn", "--threads", "1,0"], "--threads: expected whole numbers of at least 1, found '0'"),
    ],
)
def test_a_mistyped_command_line_is_answered_in_one_line(invoke, arguments, message):
    result = invoke(*arguments)
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr.startswith("error: ")
    assert result.stderr.count("\n") == 1
    assert message in result.stderr
