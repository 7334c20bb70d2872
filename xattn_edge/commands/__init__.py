"""The command line. Each command is one file here that parses, calls and prints; the work is done elsewhere.

Importing this package loads nothing: a command's file is read when the command is called, and what the command needs
when it is at work.
"""

from __future__ import annotations

import os
import sys

__all__ = ["main"]


def main() -> None:
    """Entry point of the console script `xattn-edge`; ends the process with 0, 1, 2, or 130 after Ctrl-C."""
    _hold_standard_streams()
    try:
        from xattn_edge.commands.app import run

        sys.exit(run())
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(130)


def _hold_standard_streams() -> None:
    """Put nothing in the place of a standard stream that is closed.

    Else the next file that is opened takes its number, and what a library writes to standard error goes into that file.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest number that is free, which is this one
    if sys.stderr is None:
        sys.stderr = open(os.devnull, "w", encoding="utf-8")  # noqa: PTH123, SIM115 - until the process ends
