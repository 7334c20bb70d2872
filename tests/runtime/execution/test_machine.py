"""What is asked of the machine."""

from __future__ import annotations

import ctypes
import platform

import pytest

from xattn_runtime.execution.machine import memory_use, return_freed_memory

_BLOCKS, _BLOCK_BYTES = 500, 100_000  # so small that glibc takes them from its heap, not each from the system


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc keeps what is freed in the midst of its heap")
def test_freed_memory_is_returned() -> None:
    library = ctypes.CDLL(None)
    library.malloc.restype, library.malloc.argtypes, library.free.argtypes = (
        ctypes.c_void_p,
        [ctypes.c_size_t],
        [ctypes.c_void_p],
    )
    blocks = [library.malloc(_BLOCK_BYTES) for _ in range(_BLOCKS)]
    for block in blocks:
        ctypes.memset(block, 1, _BLOCK_BYTES)
    for block in blocks[:-1]:  # the last one holds the heap's end where it is
        library.free(block)
    kept = memory_use().resident_bytes
    return_freed_memory()
    left = memory_use().resident_bytes
    library.free(blocks[-1])
    assert kept is not None
    assert left is not None
    assert kept - left > _BLOCKS * _BLOCK_BYTES / 2
