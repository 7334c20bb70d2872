"""How the report of a long command is printed: as it is with --json, else as a table of its values."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from xattn_edge.commands._console import Console

__all__ = ["print_report"]


def print_report(console: Console, report: Mapping[str, Any]) -> None:
    """Print the report, a JSON object; as text, one line a value, nested names joined by blanks."""
    if console.as_json:
        console.document(report)
    else:
        console.table(list(_rows(report)))


def _rows(report: Mapping[str, Any], above: str = "") -> Iterator[tuple[str, object]]:
    for key, value in report.items():
        name = f"{above} {key}".strip().replace("_", " ")
        if isinstance(value, Mapping):
            yield from _rows(value, name)
        elif isinstance(value, list | tuple):
            yield name, ", ".join(map(str, value))
        elif value is not None:
            yield name, value
