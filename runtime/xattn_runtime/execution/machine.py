"""What machine this is, and how much memory this process holds.

Only the operating system is asked; nothing here knows a bundle.
"""

from __future__ import annotations

import ctypes
import os
import platform
import sys
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

__all__ = ["Machine", "MemoryUse", "describe_machine", "memory_use", "return_freed_memory"]

_KIB = 1024


@dataclass(frozen=True)
class Machine:
    """`system` ("Linux"), `architecture` ("x86_64", "aarch64"), CPU model, cores this process may use, Python.

    memory_bytes: of the whole machine, None where it does not tell.
    """

    system: str
    architecture: str
    cpu: str
    cores: int
    memory_bytes: int | None
    python: str


@dataclass(frozen=True)
class MemoryUse:
    """The resident set of this process in bytes, now and at most; or None, and why."""

    resident_bytes: int | None
    peak_bytes: int | None
    unknown_because: str | None = None


def describe_machine() -> Machine:
    """This machine."""
    try:
        cores = len(os.sched_getaffinity(0))
    except AttributeError:  # only Linux has it
        cores = os.cpu_count() or 1
    return Machine(
        platform.system(), platform.machine(), _cpu_model(), cores, _memory_bytes(), platform.python_version()
    )


def memory_use() -> MemoryUse:
    """On Linux; on macOS the peak alone."""
    if sys.platform == "linux":
        return _from_proc(Path("/proc/self/status"))
    if sys.platform == "darwin":
        import resource

        return MemoryUse(None, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
    return MemoryUse(None, None, f"{sys.platform} does not report it to Python's standard library")


def return_freed_memory() -> None:
    """Give the system what this process has freed and glibc has kept; nothing where another C library runs."""
    with suppress(AttributeError, OSError, TypeError):  # other systems have no such call
        ctypes.CDLL(None).malloc_trim(0)


def _from_proc(status: Path) -> MemoryUse:
    """VmRSS and VmHWM. Unlike ru_maxrss these do not carry over from the process that started this one."""
    sizes: dict[str, int] = {}
    try:
        for line in status.read_text().splitlines():
            name, _, value = line.partition(":")
            if name in ("VmRSS", "VmHWM"):
                sizes[name] = int(value.split()[0]) * _KIB
    except (OSError, ValueError, IndexError) as error:
        return MemoryUse(None, None, f"{status} cannot be read: {error}")
    if len(sizes) < 2:
        return MemoryUse(None, None, f"{status} does not say VmRSS and VmHWM")
    return MemoryUse(sizes["VmRSS"], sizes["VmHWM"])


def _memory_bytes() -> int | None:
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, OSError, ValueError):
        return None


def _cpu_model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    fields = {key.strip(): value.strip() for key, colon, value in (line.partition(":") for line in lines) if colon}
    # Boards with ARM cores name the board under Model and the core by its part number only.
    arm = f"ARM part {fields['CPU part']}" if "CPU part" in fields else None
    return fields.get("model name") or fields.get("Model") or arm or platform.processor() or "unknown"
