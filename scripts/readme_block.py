"""Print a marked block of shell commands of README.md, so that exactly the commands of the README are run.

    python scripts/readme_block.py device | bash

A block is fenced and stands right below a comment `<!-- run: NAME -->`. Each command is printed as it is written, and
followed by a guard that ends the script where it fails.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

README = Path(__file__).resolve().parent.parent / "README.md"
GUARD = "status=$?; [ $status -eq 0 ] || exit $status"


def block(text: str, name: str) -> list[str]:
    """The commands of the block `name`, one a line, continued lines joined; SystemExit where there is no such block."""
    pattern = rf"^<!-- run: {re.escape(name)} -->\n+```\w*\n(.*?)^```"
    match = re.search(pattern, text, re.MULTILINE | re.DOTALL)
    if match is None:
        sys.exit(f"{README}: expected a fenced block below <!-- run: {name} -->, found none")
    lines = match[1].replace("\\\n", " ").splitlines()
    return [line.removeprefix("$ ") for line in lines if line.strip() and not line.startswith("#")]


if __name__ == "__main__":
    for command in block(README.read_text(encoding="utf-8"), sys.argv[1]):
        print(command, GUARD, sep="\n")
