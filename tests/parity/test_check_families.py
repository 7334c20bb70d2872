"""The table of docs/families.md is what `check_families.py` prints, and the guide to a new family is true."""

import re
import shlex
from pathlib import Path

import pytest

from tests.parity.check_families import FAMILIES, HEADER, parser, start_of, with_row
from tests.parity.checks import Ledger

CHECKOUT = Path(__file__).resolve().parents[2]
DOCS = CHECKOUT / "docs"
GUIDE = (DOCS / "adding-a-family.md").read_text(encoding="utf-8")


def _rows() -> list[str]:
    lines = (DOCS / "families.md").read_text(encoding="utf-8").splitlines()
    first = lines.index(HEADER[0])
    assert lines[first + 1] == HEADER[1]
    return lines[first + 2 : lines.index("", first)]


def test_every_entry_has_its_row_in_the_table():
    assert [[row.startswith(start_of(entry)) for row in _rows()].count(True) for entry in FAMILIES] == [1] * len(
        FAMILIES
    )
    assert len(_rows()) == len(FAMILIES)
    assert {row.count("|") for row in _rows()} == {HEADER[0].count("|")}


def test_a_row_is_put_in_the_place_of_the_old_one():
    new = f"{start_of(FAMILIES[0])} new |"
    old = f"{start_of(FAMILIES[0])} old |"
    assert with_row(f"text\n{old}\n| other |\n", FAMILIES[0], new) == f"text\n{new}\n| other |\n"
    with pytest.raises(ValueError, match=r"expected one row that begins with .*, found 0"):
        with_row("| other |\n", FAMILIES[0], new)


def test_what_is_known_is_not_computed_again(tmp_path):
    path = tmp_path / "found.jsonl"
    assert Ledger(path, "one")("error", lambda: 0.5) == 0.5
    again = Ledger(path, "one")
    assert again("error", lambda: 0.25) == 0.5
    assert again("another part", lambda: [[1, 2], True]) == [[1, 2], True]
    assert Ledger(path, "another model")("error", lambda: 0.25) == 0.25


@pytest.mark.parametrize("document", ["families.md", "adding-a-family.md"])
def test_its_command_lines_parse(document):
    calls = re.findall(r"python -m tests.parity.check_families (.*)", (DOCS / document).read_text(encoding="utf-8"))
    assert calls
    for call in calls:
        only = parser().parse_args(shlex.split(call)).only.lower()
        assert any(only in f"{entry.family} {entry.task}".lower() for entry in FAMILIES)


def test_what_the_guide_names_is_there():
    """Files in some folder of the exporter, scripts or tests, and functions and classes in their source."""
    folders = ("export", "scripts", "runtime", "tests")
    sources = [path for folder in folders for path in (CHECKOUT / folder).rglob("*.py")]
    text = "\n".join(path.read_text(encoding="utf-8") for path in sources)
    words = set(re.findall(r"`([^`\n]+)`", GUIDE))
    files = {word for word in words if word.endswith(".py") and "NAME" not in word}
    assert len(files) > 10
    assert not [file for file in files if not any(str(path).endswith(f"/{file}") for path in sources)]
    names = {word for word in words if re.fullmatch(r"[A-Za-z]+(_[a-z]+)+|[A-Z][a-z]+[A-Z]\w+", word)}
    assert len(names) > 10
    assert not [name for name in names if not re.search(rf"\b{name}\b", text)]
