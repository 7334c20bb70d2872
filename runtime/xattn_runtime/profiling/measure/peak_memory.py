"""How much memory answering takes, measured in a process of its own, which holds nothing else.

    python -m xattn_runtime.profiling.measure.peak_memory BUNDLE

prints the largest resident set of that process, in bytes.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from xattn_runtime.errors import XattnError
from xattn_runtime.execution.machine import memory_use
from xattn_runtime.loader import load
from xattn_runtime.profiling.measure.child_process import environment, python_command
from xattn_runtime.profiling.measure.passes import Passes

__all__ = ["peak_memory_bytes"]

_GOLDEN_INPUTS = 2


def peak_memory_bytes(bundle: str | os.PathLike[str]) -> int:
    """Bytes that a process needs at most to load `bundle` and answer two golden inputs.

    Raises XattnError where it fails, or where the system does not say.
    """
    command = [*python_command(__name__), os.fspath(bundle)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment())
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or [f"exit status {done.returncode}"])[-1]
        raise XattnError(f"{Path(bundle).name}: {reason}")
    return int(done.stdout)


def main(bundle: str) -> None:
    """Answer, and print the peak."""
    passes = Passes(load(bundle))
    for _ in range(_GOLDEN_INPUTS):
        passes.run()
    used = memory_use()
    if used.peak_bytes is None:
        raise XattnError(f"expected the peak of memory, found none: {used.unknown_because}")
    print(used.peak_bytes)


if __name__ == "__main__":
    main(sys.argv[1])
