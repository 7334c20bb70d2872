"""What a forked process must not use, nor ever take apart: sessions whose threads stayed behind in its parent.

It knows no session; whoever has something of the kind registers here to be told, in the child.
"""

from __future__ import annotations

import ctypes
import os
from functools import cache
from typing import Protocol
from weakref import WeakSet

__all__ = ["Inherited", "keep_forever", "tell_after_fork"]


class Inherited(Protocol):
    """Something that a forked process inherits."""

    def after_fork(self) -> None:
        """Called in the child, which has one thread, before anything else of Python runs there."""


def tell_after_fork(inherited: Inherited) -> None:
    """Call `after_fork` of `inherited` in every process that is forked while it is alive."""
    _registered().add(inherited)


def keep_forever(value: object) -> None:
    """Never take `value` apart, not even when the process ends: its destructor would wait for threads that are gone."""
    ctypes.pythonapi.Py_IncRef(ctypes.py_object(value))


@cache
def _registered() -> WeakSet[Inherited]:
    known: WeakSet[Inherited] = WeakSet()

    def tell() -> None:
        for inherited in list(known):
            inherited.after_fork()

    if hasattr(os, "register_at_fork"):  # Windows forks nothing
        os.register_at_fork(after_in_child=tell)
    return known
