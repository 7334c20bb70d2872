"""How a module of this package is run in a process of its own: this very package, and nothing that lies around.

It knows no module and starts nothing.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

__all__ = ["environment", "python_command"]


def python_command(module: str) -> list[str]:
    """The command that runs `module`; a `random.py` or `numpy` in the current folder is not imported in its place."""
    return [sys.executable, "-P", "-m", module]


def environment() -> dict[str, str]:
    """This environment, in which such a command finds this very package even where it is not installed."""
    root = str(Path(__file__).resolve().parents[3])
    paths = [root, *filter(None, [os.environ.get("PYTHONPATH")])]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}
