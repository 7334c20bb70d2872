"""What this processor can do that decides how a graph is run on it."""

from __future__ import annotations

import platform
from pathlib import Path

__all__ = ["sums_int8_exactly"]

_CPUINFO = Path("/proc/cpuinfo")
_X86 = ("x86_64", "AMD64", "i386", "i686")
_VNNI = ("avx512_vnni", "avx_vnni")


def sums_int8_exactly() -> bool:
    """Whether products of signed bytes are summed in 32 bits: always on ARM, on x86 with one of the VNNI extensions.

    Other x86 processors sum pairs in 16 bits, which can overflow. Where the system does not say what the processor
    has, the answer is no: slower, and never wrong.
    """
    if platform.machine() not in _X86:
        return True
    try:
        lines = _CPUINFO.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return False
    flags = next((line.partition(":")[2].split() for line in lines if line.startswith("flags")), [])
    return not frozenset(_VNNI).isdisjoint(flags)
