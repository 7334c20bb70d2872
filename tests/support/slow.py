"""Marks of tests that take long: `pytest` alone leaves them out, `.ci/run` runs them too."""

from collections.abc import Sequence
from typing import Any

import pytest

__all__ = ["slow_after"]


def slow_after(count: int, rows: Sequence[Any]) -> list[Any]:
    """`rows` for `parametrize`, all but the first `count` of them slow."""
    late = [row if isinstance(row, tuple) else (row,) for row in rows[count:]]
    return [*rows[:count], *(pytest.param(*row, marks=pytest.mark.slow) for row in late)]
