"""Programs that some tests need and a bare machine lacks: without one a test is skipped, and the run's end says so.

The reason of such a skip names the packages of Debian that would bring the program, in one form, so that all can be
summed up in one line.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest

__all__ = ["requires_program", "run_npm", "summary_of_skips"]

# Where programs of the system lie that are not on every user's path.
_SYSTEM_FOLDERS = ("/usr/sbin", "/usr/local/sbin")
_REASON = re.compile(r"needs .+: install (.+)")


def requires_program(*names: str, package: str) -> str:
    """The path of the first of the programs `names` that there is; without any the test is skipped.

    `package` is what brings it; several are separated by spaces.
    """
    path = os.pathsep.join([os.environ.get("PATH", ""), *_SYSTEM_FOLDERS])
    for name in names:
        if found := shutil.which(name, path=path):
            return found
    pytest.skip(f"needs {' or '.join(names)}: install {package}")


def run_npm(command: str, packages: Iterable[str], folder: Path) -> str:
    """What `npm COMMAND PACKAGES` prints in `folder`; without npm or its registry the test is skipped."""
    npm, packages = requires_program("npm", package="npm"), tuple(packages)
    line = [npm, *command.split(), *packages]
    try:
        done = subprocess.run(line, cwd=folder, capture_output=True, text=True, timeout=180, check=True)
    except subprocess.SubprocessError as error:
        pytest.skip(f"npm cannot fetch {' and '.join(packages)}: {error}")
    return done.stdout


def summary_of_skips(reasons: Iterable[str]) -> Iterator[str]:
    """One line for the tests that a missing program skipped, one for all others; `reasons` has one for each test."""
    packages: set[str] = set()
    missing, others = 0, Counter[str]()
    for reason in reasons:
        if match := _REASON.fullmatch(reason):
            missing += 1
            packages.update(match[1].split())
        else:
            others[reason] += 1
    if missing:
        yield f"skipped {missing}: install {' '.join(sorted(packages))} to run them"
    if others:
        told = "; ".join(f"{reason} ({count})" for reason, count in sorted(others.items()))
        yield f"skipped {others.total()} for other reasons: {told}"
