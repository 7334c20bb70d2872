"""The family that docs/adding-a-family.md writes, as it stands there: it is found, exported, and right."""

import re
from pathlib import Path
from typing import Any

import pytest

from xattn_export.families import table

GUIDE = Path(__file__).resolve().parents[4] / "docs" / "adding-a-family.md"


def run(block: str) -> dict[str, Any]:
    names: dict[str, Any] = {"__name__": "guide"}
    exec(compile(block, GUIDE.name, "exec"), names)
    return names


@pytest.fixture
def blocks():
    """The family's file, and the file of its test."""
    return re.findall(r"^```python\n(.*?)^```", GUIDE.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)[:2]


@pytest.mark.parametrize("attention", ["standard", "decomposed"])
def test_the_example_is_right(blocks, tmp_path, monkeypatch, attention):
    family, test = map(run, blocks)
    monkeypatch.setattr(table, "FAMILIES", (*table.FAMILIES, family["CHINESE_CLIP"]))
    test["test_embeddings_and_probabilities_are_those_of_transformers"](tmp_path, attention)
