"""How the report of a long command is printed: as it is with --json, else as a table of its values."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from xattn_edge.commands.shared.console import Console, cell

__all__ = ["print_report"]


def print_report(console: Console, report: Mapping[str, Any]) -> None:
    """Print the report, a JSON object; as text, a line for each value, and one for all operators of a graph."""
    if console.as_json:
        console.document(report)
    else:
        console.table([(name, cell(value)) for name, value in _rows(report)])


def _rows(report: Mapping[str, Any], above: str = "") -> Iterator[tuple[str, object]]:
    for key, value in report.items():
        name = f"{above} {key}".strip().replace("_", " ")
        if key == "operators":
            yield name, ", ".join(f"{operator} {count}" for operator, count in value.items())
        elif isinstance(value, Mapping):
            yield from _rows(value, name)
        elif isinstance(value, list | tuple):
            yield name, ", ".join(map(str, value)) or "none"
        elif value is not None:
            yield name, value
