"""The command line. Each command is one file here that parses, calls and prints; the work is done elsewhere.

Importing this package loads nothing: a command's file is read when the command is called, and what the command needs
when it is at work.
"""

from __future__ import annotations

import sys

__all__ = ["main"]


def main() -> None:
    """Entry point of the console script `xattn-edge`; ends the process with 0, 1, 2, or 130 after Ctrl-C."""
    try:
        from xattn_edge.commands.app import run

        sys.exit(run())
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(130)
