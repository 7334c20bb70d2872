"""What machine this is, and how much memory this process has needed at most.

Only the operating system is asked; nothing here knows a bundle.
"""

from __future__ import annotations

import os
import platform
import sys
from dataclasses import dataclass
from pathlib import Path

__all__ = ["Machine", "PeakMemory", "describe_machine", "peak_memory"]

_KIB = 1024


@dataclass(frozen=True)
class Machine:
    """`system` ("Linux"), `architecture` ("x86_64", "aarch64"), CPU model, and the cores this process may use."""

    system: str
    architecture: str
    cpu: str
    cores: int


@dataclass(frozen=True)
class PeakMemory:
    """The largest resident set of this process in bytes; or None, and why."""

    bytes: int | None
    unknown_because: str | None = None


def describe_machine() -> Machine:
    """This machine."""
    try:
        cores = len(os.sched_getaffinity(0))
    except AttributeError:  # only Linux has it
        cores = os.cpu_count() or 1
    return Machine(platform.system(), platform.machine(), _cpu_model(), cores)


def peak_memory() -> PeakMemory:
    """The peak so far, on Linux and macOS."""
    if sys.platform == "linux":
        return _peak_from_proc(Path("/proc/self/status"))
    if sys.platform == "darwin":
        import resource

        return PeakMemory(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
    return PeakMemory(None, f"{sys.platform} does not report it to Python's standard library")


def _peak_from_proc(status: Path) -> PeakMemory:
    """VmHWM. Unlike ru_maxrss it does not carry over from the process that started this one."""
    try:
        for line in status.read_text().splitlines():
            if line.startswith("VmHWM:"):
                return PeakMemory(int(line.split()[1]) * _KIB)
    except (OSError, ValueError, IndexError) as error:
        return PeakMemory(None, f"{status} cannot be read: {error}")
    return PeakMemory(None, f"{status} does not say VmHWM")


def _cpu_model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    fields = {key.strip(): value.strip() for key, colon, value in (line.partition(":") for line in lines) if colon}
    # Boards with ARM cores name the board under Model and the core by its part number only.
    arm = f"ARM part {fields['CPU part']}" if "CPU part" in fields else None
    return fields.get("model name") or fields.get("Model") or arm or platform.processor() or "unknown"
