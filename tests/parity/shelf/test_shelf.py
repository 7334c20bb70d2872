"""Every folder of the shelf is exported, and its bundle gives what Transformers gives for the folder."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.parity.shelf.published import Published
from tests.parity.shelf.shelf import SHELF
from tests.parity.shelf.truths import images
from xattn_export import export_checkpoint
from xattn_runtime.loader import load


@pytest.mark.parametrize(
    "published", [pytest.param(each, id=each.name, marks=() if each.is_quick else pytest.mark.slow) for each in SHELF]
)
def test_a_bundle_of_the_folder_gives_what_transformers_gives(published: Published, tmp_path: Path) -> None:
    folder = tmp_path / published.name.rpartition("/")[2]
    published.write(folder)
    export_checkpoint(folder, tmp_path / "bundle.xattn", task=published.task, command="shelf")
    published.truth(folder).compare(load(tmp_path / "bundle.xattn"), images(), tmp_path)
