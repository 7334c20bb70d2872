"""Giving a loaded model back: what every task has in common with a file."""

from __future__ import annotations

from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from xattn_runtime.bundle.folder import Bundle
from xattn_runtime.errors import UserError

__all__ = ["Closable"]


class Closable:
    """A task as a context manager. Closed, it frees its graphs and refuses every further call.

    Calls that other threads are in when it is closed are finished.
    """

    bundle: Bundle

    def close(self) -> None:
        """Let graphs and tokenizer go; closing again does nothing."""
        for name in [name for name in vars(self) if name.startswith("_")]:
            delattr(self, name)

    def __enter__(self) -> Self:
        """The task itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close it."""
        self.close()

    if not TYPE_CHECKING:  # else every mistyped name would pass for an attribute

        def __getattr__(self, name: str) -> Any:
            if name.startswith("_") and not name.startswith("__") and "bundle" in vars(self):
                raise UserError(f"{self.bundle.path}: expected an open model, found one that was closed; load it again")
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")
