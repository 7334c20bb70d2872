"""How long work reports its progress."""

from __future__ import annotations

from typing import Protocol

__all__ = ["Progress", "silent"]


class Progress(Protocol):
    """Called now and then with what is being done and the share of the whole that is done, from 0 to 1."""

    def __call__(self, what: str, share: float, /) -> None: ...


def silent(_what: str, _share: float, /) -> None:
    """Progress that is not shown."""
