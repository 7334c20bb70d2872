"""What is kept of prompts that repeat: the cache of their beginning, the image's part of it, with the encoded image.

So a second question about an image pays for its own words alone. How a beginning is computed is not known here.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from weakref import ref

from xattn_runtime.execution.forking import tell_after_fork
from xattn_runtime.generate.cache import Cache

__all__ = ["KeptPrompts", "PromptBudget"]

_MOST_OF_AN_IMAGE = 2
_MOST_BYTES = 512 * 2**20


class KeptPrompts:
    """The caches of the last beginnings of prompts about one image; a few, as system prompts differ.

    Reading and adding are safe beside each other: what is kept is replaced as a whole.
    """

    def __init__(self) -> None:
        self._kept: tuple[tuple[tuple[int, ...], Cache], ...] = ()

    def find(self, ids: tuple[int, ...]) -> Cache | None:
        """The cache of just these token ids."""
        return next((cache for known, cache in self._kept if known == ids), None)

    def keep(self, ids: tuple[int, ...], cache: Cache) -> None:
        """Keep a cache; of more than a few, the oldest go."""
        others = [entry for entry in self._kept if entry[0] != ids]
        self._kept = ((ids, cache), *others[: _MOST_OF_AN_IMAGE - 1])

    def clear(self) -> None:
        """Let all of it go; it is computed again when it is needed."""
        self._kept = ()

    @property
    def size_bytes(self) -> int:
        """What the caches take."""
        return sum(cache.size_bytes for _, cache in self._kept)

    def __reduce__(self) -> tuple[type[KeptPrompts], tuple[()]]:
        """A copy keeps nothing."""
        return KeptPrompts, ()


class PromptBudget:
    """All that is kept for one model: where it takes more than its share, that of the images asked longest ago goes."""

    def __init__(self, most_bytes: int = _MOST_BYTES) -> None:
        self._most_bytes = most_bytes
        self._recent: list[ref[KeptPrompts]] = []
        self._lock = threading.Lock()
        tell_after_fork(self)

    def after_fork(self) -> None:
        """See `Inherited`: a thread that is not here may hold the lock."""
        self._lock = threading.Lock()

    def cache(self, kept: KeptPrompts, ids: tuple[int, ...], compute: Callable[[], Cache]) -> Cache:
        """The cache of `ids` that is kept, or the one that `compute` returns, which then is."""
        if (cache := kept.find(ids)) is None:
            cache = compute()
            kept.keep(ids, cache)
        with self._lock:
            others = [one for one in self._recent if one() is not None and one() is not kept]
            self._recent = [*others, ref(kept)]
            self._shrink()
        return cache

    def _shrink(self) -> None:
        """Let go what is over the share, but never the newest."""
        room = self._most_bytes
        newest = True
        for one in reversed(self._recent):
            if (kept := one()) is None:
                continue
            room -= kept.size_bytes
            if room < 0 and not newest:
                kept.clear()
            newest = False
