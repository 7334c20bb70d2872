"""The table in docs/providers.md is the one in the code."""

from pathlib import Path

from xattn_runtime.execution.providers import PROVIDERS

DOCUMENT = Path(__file__).resolve().parents[3] / "docs" / "providers.md"


def cells(text: str, heading: str) -> dict[str, list[str]]:
    """The rows of the table whose first column is headed so: its name → the other cells."""
    lines = text.partition(f"| {heading} |")[2].splitlines()[2:]
    rows = [[cell.strip().strip("`") for cell in line.strip("|").split("|")] for line in lines[: lines.index("")]]
    return {row[0]: row[1:] for row in rows}


def test_the_documented_table():
    found = cells(DOCUMENT.read_text(encoding="utf-8"), "provider")
    assert list(found) == [row.name for row in PROVIDERS]
    for row in PROVIDERS:
        requirements = row.requirements
        assert found[row.name] == [
            row.platforms,
            row.package or "none: a build from source",
            ", ".join(requirements.attention),
            str(requirements.highest_opset),
            ", ".join(requirements.precisions),
            "needed" if requirements.static_shapes else "no",
            "yes" if requirements.loops else "no",
        ]
