"""What another process does, as Linux says it in /proc, and waiting for it: tests count on no time that it takes."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path

__all__ = ["children_of", "processor_seconds", "wait_until"]

_USER_TIME, _SYSTEM_TIME = 11, 12  # of the fields behind the command's name, from 0


def children_of(process: int) -> list[int]:
    """The processes that a process has started and that are not gone."""
    return [int(one) for path in Path(f"/proc/{process}/task").glob("*/children") for one in path.read_text().split()]


def processor_seconds(process: int) -> float:
    """Seconds that a process has computed so far."""
    fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[_USER_TIME]) + int(fields[_SYSTEM_TIME])) / os.sysconf("SC_CLK_TCK")


def wait_until(happened: Callable[[], object], within_s: float = 120.0) -> None:
    """Wait until `happened` says so; TimeoutError where it does not."""
    deadline = time.monotonic() + within_s
    while not happened():
        if time.monotonic() > deadline:
            raise TimeoutError(f"expected it within {within_s:g} s")
        time.sleep(0.02)
