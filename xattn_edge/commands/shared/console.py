"""What a command prints, and the edge where errors turn into one line and an exit code.

The answer goes to standard output; notes, warnings, errors and progress go to standard error.
"""

from __future__ import annotations

import json
import logging
import os
import sys
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import typer

from xattn_runtime.errors import (
    DependencyError,
    ImageError,
    OutputError,
    QuestionError,
    UserError,
    XattnError,
    advice_on,
)
from xattn_runtime.progress import Progress, silent

__all__ = ["INTERRUPTED", "Console", "cell", "command", "one_line", "print_error", "provenance_command"]

INTERRUPTED = 130
"""Exit code after Ctrl-C, as shells have it."""

_Item = TypeVar("_Item")
_Result = TypeVar("_Result")

_EXTRAS = {
    "cpu": ("onnxruntime",),
    "export": ("ml_dtypes", "onnx", "onnx_ir", "onnxscript", "safetensors", "torch", "transformers"),
    "report": ("matplotlib",),
    "chat": ("jinja2",),
    "data": ("easy_vqa", "emoji", "pycocoevalcap", "resvg_py", "sacrebleu"),
}
_LOGGERS = ("xattn_runtime", "xattn_export")


class Console:
    """Where one command prints. `exit_code` is what it ends with unless it raises."""

    def __init__(self, *, as_json: bool, quiet: bool) -> None:
        self.as_json = as_json
        self.quiet = quiet
        self.exit_code = 0

    @property
    def is_terminal(self) -> bool:
        """Whether a person reads the answer."""
        return sys.stdout is not None and sys.stdout.isatty()

    def document(self, value: Mapping[str, Any]) -> None:
        """The answer as JSON."""
        _write_answer(_json(value, indent=2))

    def json_line(self, value: Mapping[str, Any]) -> None:
        """A part of the answer as a line of JSON."""
        _write_answer(_json(value))

    def line(self, text: str) -> None:
        """A line of the answer as text."""
        _write_answer(_printable(text))

    def part(self, text: str) -> None:
        """A part of a line of the answer, at once."""
        _write_answer(_printable(text), end="")

    def table(self, rows: Sequence[Sequence[object]]) -> None:
        """Rows as aligned columns: those that hold a number to the right, the others to the left."""
        columns = []
        for values in zip(*rows, strict=True):
            cells = [cell(value) for value in values]
            align = str.rjust if any(isinstance(value, int | float) for value in values) else str.ljust
            columns.append([align(cell, max(map(len, cells))) for cell in cells])
        for row in zip(*columns, strict=True):
            self.line("  ".join(row).rstrip())

    def note(self, text: str) -> None:
        """A line beside the answer."""
        if not self.quiet:
            _write_aside(_printable(text))

    def warn(self, text: str) -> None:
        """Something that the user should know and that stops nothing."""
        self.note(f"warning: {text}")

    def fail(self, message: str) -> None:
        """A check that failed: said as an error, and the command ends with 1."""
        print_error(message)
        self.exit_code = XattnError.exit_code

    def refuse(self, error: UserError) -> None:
        """One of several inputs cannot be used: said as an error, and the others continue."""
        print_error(str(error))
        self.exit_code = error.exit_code

    def each(self, items: Iterable[_Item], call: Callable[[_Item], _Result]) -> Iterator[tuple[_Item, _Result]]:
        """Every item with its result; an image or question that cannot be used is reported, and the others continue."""
        for item in items:
            try:
                result = call(item)
            except (ImageError, QuestionError) as error:
                self.refuse(error)
            else:
                yield item, result

    @contextmanager
    def progress(self) -> Iterator[Progress]:
        """A bar on standard error while a person watches, else nothing."""
        if self.quiet or sys.stderr is None or not sys.stderr.isatty():
            yield silent
            return
        from rich.console import Console as RichConsole
        from rich.progress import BarColumn, TaskProgressColumn, TextColumn, TimeRemainingColumn
        from rich.progress import Progress as RichProgress

        columns = (
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            TaskProgressColumn(),
            TimeRemainingColumn(),
        )
        with RichProgress(*columns, console=RichConsole(stderr=True), transient=True) as bar:
            task = bar.add_task("", total=1.0)
            yield lambda what, share: bar.update(task, description=what, completed=share)


@contextmanager
def command(*, as_json: bool, quiet: bool, debug: bool, output: Path | None = None) -> Iterator[Console]:
    """A command at work: gives it its console and turns what it raises into one line and `typer.Exit`.

    `output` is named where an operating system error does not say which file it met.
    """
    console = Console(as_json=as_json, quiet=quiet)
    try:
        with _log_as_notes(console):
            yield console
    except (typer.Exit, typer.TyperException):
        raise
    except Exception as error:
        if debug:
            traceback.print_exc()
        message, code = _describe(error, output)
        print_error(message)
        raise typer.Exit(code) from error
    if console.exit_code:
        raise typer.Exit(console.exit_code)


@contextmanager
def _log_as_notes(console: Console) -> Iterator[None]:
    """What the runtime and the exporter log, such as which provider was chosen and why, as notes of `console`."""

    class Notes(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            console.note(record.getMessage())

    handler = Notes(logging.INFO)
    levels = {logger: logger.level for logger in map(logging.getLogger, _LOGGERS)}
    for logger in levels:
        logger.addHandler(handler)
        logger.setLevel(logging.INFO)
    try:
        yield
    finally:
        for logger, level in levels.items():
            logger.removeHandler(handler)
            logger.setLevel(level)


def provenance_command() -> str:
    """The command line of this process, as a bundle records it."""
    import shlex

    return shlex.join(["xattn-edge", *sys.argv[1:]])


def one_line(text: str) -> str:
    """`text` without line breaks."""
    return " ".join(text.split())


def print_error(message: str) -> None:
    """One line on standard error."""
    _write_aside(f"error: {_printable(one_line(message))}")


def _describe(error: Exception, output: Path | None) -> tuple[str, int]:
    """The line for an error, and its exit code."""
    if isinstance(error, ModuleNotFoundError) and (extra := _extra_of(error.name)):
        message = f'{error.name}: not installed, and this command needs it; run pip install "xattn-edge[{extra}]"'
        return message, DependencyError.exit_code
    if isinstance(error, XattnError):
        return str(error), error.exit_code
    if isinstance(error, OSError) and error.errno is not None:
        return _describe_os_error(error, output)
    if isinstance(error, MemoryError):
        return "not enough memory; close other programs or use a smaller input", 1
    return f"internal error: {type(error).__name__}: {error}; run again with --debug", 1


def _describe_os_error(error: OSError, output: Path | None) -> tuple[str, int]:
    place = error.filename2 or error.filename or output
    where = f"{os.fsdecode(place)}: " if isinstance(place, str | bytes | os.PathLike) else ""
    what = (error.strerror or str(error)).lower()
    advice = advice_on(error)
    return (f"{where}{what}; {advice}", 2) if advice else (f"{where}{what}", 1)


def _extra_of(module: str | None) -> str | None:
    top = (module or "").partition(".")[0]
    return next((extra for extra, modules in _EXTRAS.items() if top in modules), None)


def _json(value: Mapping[str, Any], indent: int | None = None) -> str:
    encoding = getattr(sys.stdout, "encoding", None) or "ascii"
    in_ascii = encoding.lower().replace("-", "") != "utf8"
    return json.dumps(value, ensure_ascii=in_ascii, indent=indent, allow_nan=False)


def _write_answer(text: str, end: str = "\n") -> None:
    if sys.stdout is None:
        raise OutputError("standard output: expected a place for the answer, found it closed; redirect it to a file")
    try:
        print(text, end=end, flush=True)
    except BrokenPipeError as error:
        _abandon_standard_output()
        raise typer.Exit(1) from error
    except OSError as error:
        _abandon_standard_output()
        raise OSError(error.errno, error.strerror, "standard output") from error


def _abandon_standard_output() -> None:
    """Let what is still buffered go nowhere, so that the interpreter does not fail on it again when it ends."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, sys.stdout.fileno())
    os.close(nowhere)


def _write_aside(text: str) -> None:
    if sys.stderr is None:  # closed: `print` would write to standard output
        return
    try:
        print(text, file=sys.stderr, flush=True)
    except OSError:
        return  # the reader is gone


def _printable(text: str) -> str:
    """`text` with control characters written out: a label or a file name must not drive the terminal."""
    return "".join(
        character if character.isprintable() or character == "\t" else ascii(character)[1:-1] for character in text
    )


def cell(value: object) -> str:
    """A value as people read it in a table."""
    return f"{value:.5g}" if isinstance(value, float) else str(value)
