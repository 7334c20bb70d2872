"""What every argument and option is checked for: no empty path, and no number that is none.

An empty path, such as `"$UNSET"` leaves, would be the current folder, and `nan` is neither above nor below any limit.
It knows how Typer reads arguments, and no command. `Any` stands for classes that Typer keeps private.
"""

from __future__ import annotations

import copy
import math
from typing import Any

import typer

__all__ = ["with_checked_values"]

_LARGEST = 2**63 - 1
_PATHS = ("path", "file", "directory")
_NUMBERS = {"float": "a number", "float range": "a number", "int": "a whole number", "int range": "a whole number"}


def with_checked_values(command: Any) -> Any:
    """`command`, whose arguments and options, and those of its subcommands, are checked."""
    for parameter in command.params:
        parameter.type = _checked(parameter.type)
    for name, subcommand in getattr(command, "commands", {}).items():
        command.commands[name] = with_checked_values(subcommand)
    return command


def _checked(kind: Any) -> Any:
    """A type that converts as `kind` does, and refuses what is empty, not finite, or larger than any use."""
    checked = copy.copy(kind)
    convert = checked.convert
    if kind.name in _PATHS:
        checked.readable = False  # who opens it says more, and of several paths continues with the others

    def convert_checked(value: Any, param: Any, ctx: Any) -> Any:
        if kind.name in _PATHS and value == "":
            checked.fail("expected a path, found an empty text; was a variable not set?", param, ctx)
        try:
            converted = convert(value, param, ctx)
        except typer.BadParameter:
            if kind.name in _NUMBERS:
                checked.fail(f"expected {_limits(kind)}, found {value!r}", param, ctx)
            raise
        if isinstance(converted, float) and not math.isfinite(converted):
            checked.fail(f"expected a finite number, found {converted}", param, ctx)
        if isinstance(converted, int) and abs(converted) > _LARGEST:
            checked.fail(f"expected a number of at most {_LARGEST}, found a larger one", param, ctx)
        return converted

    checked.convert = convert_checked
    return checked


def _limits(kind: Any) -> str:
    """What a type of numbers takes, in words."""
    lowest, highest = getattr(kind, "min", None), getattr(kind, "max", None)
    if highest is not None:
        return f"{_NUMBERS[kind.name]} from {lowest} to {highest}"
    return _NUMBERS[kind.name] if lowest is None else f"{_NUMBERS[kind.name]} of at least {lowest}"
