"""Checking what a caller passes: each function returns the value as the type it must be, or raises one clear line.

It knows names and kinds of values, and nothing of what they are for. numpy's numbers are numbers; `True` is none.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from numbers import Integral, Real
from typing import TYPE_CHECKING, Any

from xattn_runtime.errors import UserError
from xattn_runtime.json_reader import show

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

__all__ = ["choice", "float_array", "found", "path_text", "text", "whole_number"]

_Error = type[UserError]


def found(value: object) -> str:
    """What was passed, for the end of a message: the value, or its type where the value says little."""
    if _is_array(value):
        return f"an array of {value.dtype} {list(value.shape)}"  # type: ignore[attr-defined]
    if value is None or isinstance(value, str | bytes | Real | Mapping | list | tuple | set | os.PathLike):
        return show(value)
    return f"a value of type {type(value).__name__}"


def whole_number(
    name: str, value: object, minimum: int, maximum: int | None = None, *, advice: str = "", error: _Error = UserError
) -> int:
    """`value` as an int from `minimum` to `maximum`. `advice`: what else to do."""
    is_whole = isinstance(value, Integral) and not isinstance(value, bool)
    if not is_whole or value < minimum or (maximum is not None and value > maximum):  # type: ignore[operator]
        expected = f"at least {minimum}" if maximum is None else f"{minimum} to {maximum}"
        kind, then = "" if is_whole else "a whole number, ", advice and f"; {advice}"
        raise error(f"{name}: expected {kind}{expected}, found {found(value)}{then}")
    return int(value)  # type: ignore[call-overload, no-any-return]


def text(name: str, value: object, *, error: _Error = UserError) -> str:
    """`value` as a str of whole characters, which may be empty."""
    if not isinstance(value, str):
        raise error(f"{name}: expected text, found {found(value)}")
    try:
        value.encode()
    except UnicodeEncodeError as cause:
        raise error(f"{name}: expected Unicode text, found half a character in {show(value)}") from cause
    return value


def choice(name: str, value: object, choices: Iterable[Any], *, error: _Error = UserError) -> Any:
    """That one of `choices` which `value` is, of the same type."""
    for one in (choices := tuple(choices)):
        if type(value) is type(one) and value == one:
            return one
    raise error(f"{name}: expected {' or '.join(show(one) for one in choices)}, found {found(value)}")


def path_text(name: str, value: object, expected: str, *, error: _Error = UserError) -> str:
    """A path as a str, of which the system may still find nothing."""
    if isinstance(value, str | os.PathLike) and isinstance(path := os.fspath(value), str):
        if "\0" in path or (not path.isascii() and not _is_encodable(path)):
            raise error(f"{name}: expected {expected}, found a path that no file can have: {show(path)}")
        return path
    raise error(f"{name}: expected {expected}, found {found(value)}")


def float_array(
    name: str, value: object, shape: str, dimensions: int, *, error: _Error = UserError
) -> NDArray[np.float32]:
    """`value` as float32 with that many dimensions, all of it finite; `shape` says in words what is expected."""
    import numpy as np

    try:
        array = np.asarray(value)
        if array.dtype.kind not in "fiu" or array.ndim != dimensions:
            raise error(f"{name}: expected numbers {shape}, found {found(array if array.dtype != object else value)}")
    except ValueError as cause:  # numpy's, of rows that differ in length
        raise error(f"{name}: expected numbers {shape}, found rows of different lengths") from cause
    with np.errstate(over="ignore"):
        array = array.astype(np.float32)
    if not np.isfinite(array).all():
        raise error(f"{name}: expected finite numbers, found some that are not")
    return array


def _is_array(value: object) -> bool:
    """Whether it is an array of numpy, which need not be loaded for that."""
    return type(value).__module__ == "numpy" and type(value).__name__ in ("ndarray", "memmap")


def _is_encodable(path: str) -> bool:
    try:
        os.fsencode(path)
    except UnicodeEncodeError:
        return False
    return True
