"""Ways to call the command line: in this process, or as a process of its own where streams and signals matter."""

import importlib
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner, Result

from xattn_edge.commands.app import app

CHECKOUT = Path(__file__).resolve().parents[3]

Invoke = Callable[..., Result]
Spawn = Callable[..., "subprocess.Popen[str]"]
Install = Callable[..., None]


@pytest.fixture
def invoke() -> Invoke:
    """Calls the command line in this process; standard output and error are kept apart."""
    return lambda *arguments: CliRunner().invoke(app, [str(argument) for argument in arguments], prog_name="xattn-edge")


@pytest.fixture
def parse() -> Callable[[list[str]], None]:
    """Checks a command line without carrying it out; typer.TyperException where it is wrong."""

    def check(arguments: list[str]) -> None:
        command: Any = typer.main.get_command(app)
        name, context = "xattn-edge", None
        while True:
            context = command.make_context(name, list(arguments), parent=context)
            if not hasattr(command, "resolve_command"):
                return
            name, command, arguments = command.resolve_command(context, [*context._protected_args, *context.args])

    return check


@pytest.fixture
def spawn() -> Spawn:
    """Starts `python cli.py …`."""

    def start(*arguments: object, **options: Any) -> "subprocess.Popen[str]":
        command = [sys.executable, str(CHECKOUT / "cli.py"), *map(str, arguments)]
        streams = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        return subprocess.Popen(command, text=True, env=dict(os.environ), **(streams | options))

    return start


@pytest.fixture
def stand_in(monkeypatch: pytest.MonkeyPatch) -> Install:
    """Puts the given functions in the place of a module's own, so that only the command is tested."""

    def put(name: str, **functions: object) -> None:
        module = importlib.import_module(name)
        for function, stand_in in functions.items():
            monkeypatch.setattr(module, function, stand_in)

    return put


@pytest.fixture
def picture(vqa_bundle: Path) -> Path:
    return vqa_bundle / "golden" / "0.png"
