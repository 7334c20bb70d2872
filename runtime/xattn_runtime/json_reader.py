"""Typed reading of JSON objects, with errors that name file, key, expected and found.

It knows nothing of what the keys mean; `manifest.py` and `preprocess/steps.py` say that.
"""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Iterable, Iterator, Sequence
from typing import NoReturn

from xattn_runtime.errors import BundleError

__all__ = ["ObjectReader", "likely_meant", "one_line", "show", "unsafe_path_reason"]

_SHOWN_CHARACTERS = 80


def show(value: object) -> str:
    """`value` on one line, quoted, cut at 80 characters."""
    text = " ".join(repr(value).split())
    return text if len(text) <= _SHOWN_CHARACTERS else text[: _SHOWN_CHARACTERS - 1] + "…"


def one_line(error: BaseException) -> str:
    """The message of `error` on one line; the name of its class where it has none."""
    return " ".join(str(error).split()) or type(error).__name__


def likely_meant(name: str, known: Iterable[str]) -> str:
    """`; did you mean …?` for the known name that `name` looks like, or nothing where it looks like none."""
    close = difflib.get_close_matches(name.lower(), known, n=1)
    return f"; did you mean {close[0]}?" if close else ""


def unsafe_path_reason(path: str) -> str | None:
    """Why `path` may not stand in a bundle, or None where it may: relative, `/` between parts, inside."""
    if not path:
        return "it is empty"
    if "\\" in path:
        return "it holds a backslash"
    if path.startswith("/") or re.match(r"[A-Za-z]:", path):
        return "it is absolute"
    if not path.isprintable():
        return "it holds control characters"
    if any(part in {"", ".", ".."} for part in path.split("/")):
        return "it has an empty part, '.' or '..'"
    return None


class ObjectReader:
    """One JSON object: every read names its key, and `finish` refuses the keys that were not read."""

    def __init__(self, value: object, file: str, where: str = "") -> None:
        """`file` and `where` (dotted path of the object, empty for the root) stand in every error."""
        self._file = file
        self._where = where
        if not isinstance(value, dict):
            raise BundleError(f"{file}: {where or 'the document'}: expected an object, found {show(value)}")
        self._items: dict[str, object] = value
        self._read: set[str] = set()

    def fail(self, key: str, expected: str, found: object) -> NoReturn:
        """Raise the BundleError for `key`."""
        raise BundleError(f"{self._file}: {self._path(key)}: expected {expected}, found {show(found)}")

    def __contains__(self, key: str) -> bool:
        return key in self._items

    def __iter__(self) -> Iterator[str]:
        return iter(self._items)

    def raw(self, key: str, expected: str = "a value") -> object:
        """The value as json gave it; BundleError where the key is missing."""
        self._read.add(key)
        if key not in self._items:
            raise BundleError(f"{self._file}: {self._path(key)}: expected {expected}, found no such key")
        return self._items[key]

    def text(self, key: str, *, choices: Sequence[str] = (), pattern: str | None = None) -> str:
        """A non-empty string, one of `choices` or matching `pattern` where set."""
        expected = "one of " + ", ".join(choices) if choices else f"a string like {pattern}" if pattern else "a string"
        value = self.raw(key, expected)
        if not isinstance(value, str) or not value:
            self.fail(key, expected, value)
        if (choices and value not in choices) or (pattern and not re.fullmatch(pattern, value)):
            self.fail(key, expected, value)
        return value

    def any_text(self, key: str) -> str:
        """A string, which may be empty."""
        value = self.raw(key, "a string")
        if not isinstance(value, str):
            self.fail(key, "a string", value)
        return value

    def template(self, key: str, *places: str) -> str:
        """A string that has each of `places` in it once."""
        template = self.any_text(key)
        for place in places:
            if template.count(place) != 1:
                self.fail(key, f"a text with {place} in it once", template)
        return template

    def integer(self, key: str, *, minimum: int = 0) -> int:
        """An integer of at least `minimum`; true and false are not integers."""
        expected = f"an integer of at least {minimum}"
        value = self.raw(key, expected)
        if not isinstance(value, int) or isinstance(value, bool) or value < minimum:
            self.fail(key, expected, value)
        return value

    def integers(self, key: str, *, minimum: int = 0, maximum: int | None = None) -> tuple[int, ...]:
        """A list of integers from `minimum` to `maximum`."""
        expected = f"a list of integers of at least {minimum}" + ("" if maximum is None else f" and at most {maximum}")
        values = self.items(key, expected)
        integers: list[int] = []
        for value in values:
            if not isinstance(value, int) or isinstance(value, bool):
                self.fail(key, expected, values)
            if value < minimum or (maximum is not None and value > maximum):
                self.fail(key, expected, values)
            integers.append(value)
        return tuple(integers)

    def positive(self, key: str) -> float:
        """A finite number above 0."""
        value = self.raw(key, "a number above 0")
        if not _is_finite_number(value) or float(value) <= 0:  # type: ignore[arg-type]
            self.fail(key, "a number above 0", value)
        return float(value)  # type: ignore[arg-type]

    def number(self, key: str) -> float:
        """A finite number."""
        value = self.raw(key, "a number")
        if not _is_finite_number(value):
            self.fail(key, "a number", value)
        return float(value)  # type: ignore[arg-type]

    def boolean(self, key: str) -> bool:
        """True or false."""
        value = self.raw(key, "true or false")
        if not isinstance(value, bool):
            self.fail(key, "true or false", value)
        return value

    def numbers(self, key: str, count: int) -> tuple[float, ...]:
        """A list of `count` finite numbers."""
        expected = f"a list of {count} numbers"
        values = self.items(key, expected)
        if len(values) != count or not all(map(_is_finite_number, values)):
            self.fail(key, expected, values)
        return tuple(float(value) for value in values)  # type: ignore[arg-type]

    def items(self, key: str, expected: str = "a list") -> list[object]:
        """A list of anything."""
        value = self.raw(key, expected)
        if not isinstance(value, list):
            self.fail(key, expected, value)
        return value

    def texts(self, key: str) -> tuple[str, ...]:
        """A list of non-empty strings, not empty itself, each once."""
        expected = "a list of different, non-empty strings"
        values = self.items(key, expected)
        texts = tuple(value for value in values if isinstance(value, str) and value)
        if not values or len(texts) != len(values) or len(set(texts)) != len(texts):
            self.fail(key, expected, values)
        return texts

    def text_map(self, key: str) -> dict[str, str]:
        """An object whose values are strings."""
        value = self.raw(key, "an object of strings")
        if not isinstance(value, dict) or not all(isinstance(item, str) for item in value.values()):
            self.fail(key, "an object of strings", value)
        return dict(value)

    def path(self, key: str) -> str:
        """A path that stays inside the bundle."""
        value = self.text(key)
        if (reason := unsafe_path_reason(value)) is not None:
            self.fail(key, f"a relative path inside the bundle ({reason})", value)
        return value

    def child(self, key: str) -> ObjectReader:
        """The object under `key`."""
        return ObjectReader(self.raw(key, "an object"), self._file, self._path(key))

    def children(self, key: str) -> list[ObjectReader]:
        """The list of objects under `key`."""
        values = self.items(key, "a list of objects")
        return [ObjectReader(value, self._file, f"{self._path(key)}[{i}]") for i, value in enumerate(values)]

    def finish(self) -> None:
        """Refuse keys that were not read: a key without meaning here may be one that matters to its writer."""
        unread = [key for key in self._items if key not in self._read]
        if unread:
            known = ", ".join(sorted(self._read))
            raise BundleError(
                f"{self._file}: {self._path(unread[0])}: expected only the keys {known}, found {show(unread[0])}"
            )

    def _path(self, key: str) -> str:
        return f"{self._where}.{key}" if self._where else key


def _is_finite_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
