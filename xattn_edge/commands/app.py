"""The table of commands, the root of the command line, and how a mistyped command line is answered.

It imports a command's file only when that command is called, completed, or listed by `--help`.
"""

from __future__ import annotations

import difflib
import sys
import warnings
from importlib import import_module
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from xattn_edge.commands.shared.arguments import with_checked_values
from xattn_edge.commands.shared.console import INTERRUPTED, one_line, print_error
from xattn_edge.commands.shared.options import new_app

__all__ = ["COMMANDS", "app", "run"]

COMMANDS = {
    "train": "models.train",
    "study": "models.study",
    "export": "models.export",
    "quantize": "models.quantize",
    "caption": "answers.caption",
    "vqa": "answers.vqa",
    "chat": "answers.chat",
    "retrieve": "answers.retrieve",
    "classify": "answers.classify",
    "sentiment": "answers.sentiment",
    "evaluate": "models.evaluate",
    "calibrate": "models.calibrate",
    "compare": "device.compare",
    "profile": "device.profile_bundles",
    "tune": "device.tune",
    "inspect": "device.inspect_bundle",
    "verify": "device.verify",
    "providers": "device.providers",
    "data": "models.data",
}
"""Every command, in the order of `--help`, with the module of `xattn_edge.commands` that holds it."""


class _Commands(TyperGroup):
    """The group of the modules that `COMMANDS` names. `Any` stands for classes that Typer keeps private."""

    def list_commands(self, ctx: Any) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        if cmd_name in COMMANDS:
            command = typer.main.get_command(import_module(f"xattn_edge.commands.{COMMANDS[cmd_name]}").app)
            return with_checked_values(command)
        close = difflib.get_close_matches(cmd_name, COMMANDS, n=1)
        if close and not ctx.resilient_parsing:
            ctx.fail(f"No such command {cmd_name!r}; the nearest is {close[0]!r}")
        return None

    def main(self, *args: Any, **options: Any) -> Any:
        """Typer's `main`, with one line for a mistake or an interruption."""
        try:
            code = super().main(*args, **(options | {"standalone_mode": False}))
        except typer.TyperException as error:
            print_error(_usage_message(error))
            code = error.exit_code
        if code == INTERRUPTED:
            print("interrupted", file=sys.stderr)
        sys.exit(code if isinstance(code, int) else 0)


app = new_app(cls=_Commands, add_completion=True, invoke_without_command=True)


def _print_version(requested: bool) -> None:
    if requested:
        from xattn_runtime.version import installed_version

        typer.echo(f"xattn-edge {installed_version()}")
        raise typer.Exit


@app.callback()
def root(
    ctx: typer.Context,
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """Export, quantize, profile and run cross-modal attention models on edge devices.

    \b
    Examples:
      xattn-edge caption photo.png
      xattn-edge vqa photo.png "what color is the shape?"
      xattn-edge verify emoji-caption
      xattn-edge COMMAND --help

    A BUNDLE is a folder, or the name of one that came with this package: emoji-caption, emoji-retrieval, sentiment,
    shapes-vqa.
    """
    if ctx.invoked_subcommand is None:
        typer.echo(ctx.get_help(), err=True)
        raise typer.Exit(2)


def run() -> int:
    """Run the command line of this process; its exit code."""
    if not sys.warnoptions:
        warnings.simplefilter("ignore")  # for developers of libraries, not for who runs a command
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
    try:
        app(prog_name="xattn-edge")
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else int(end.code is not None)
    return 0


def _usage_message(error: typer.TyperException) -> str:
    context = getattr(error, "ctx", None)
    path = context.command_path if context else "xattn-edge"
    return f"{one_line(error.format_message()).rstrip('.')}; see `{path} --help`"
