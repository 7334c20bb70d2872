"""A bundle of each folder of the shelf gives what Transformers gives for it, and docs/families.md lists it."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.parity.shelf.published import Published
from tests.parity.shelf.shelf import SHELF, TABLE, row_of, seen
from tests.parity.shelf.truths import images
from xattn_export import export_checkpoint
from xattn_runtime.loader import load

FAMILIES = Path(__file__).resolve().parents[3] / "docs" / "families.md"


@pytest.mark.parametrize(
    "published", [pytest.param(each, id=each.name, marks=() if each.is_quick else pytest.mark.slow) for each in SHELF]
)
def test_a_bundle_of_the_folder_gives_what_transformers_gives(published: Published, tmp_path: Path) -> None:
    folder = tmp_path / published.name.rpartition("/")[2]
    published.write(folder)
    bundle = tmp_path / "bundle.xattn"
    export_checkpoint(folder, bundle, task=published.task, command="shelf", whole=published.is_quick)
    published.truth(folder).compare(load(bundle), images(), tmp_path)


def test_the_table_of_the_documents_is_that_of_the_shelf() -> None:
    """`python -m tests.parity.shelf.shelf` prints it."""
    lines = FAMILIES.read_text(encoding="utf-8").splitlines()
    first = lines.index(TABLE[0])
    assert lines[first : lines.index("", first)] == [*TABLE, *map(row_of, SHELF)]
    assert lines[first - 2] == seen()
    assert len({published.name for published in SHELF}) == len(SHELF)
