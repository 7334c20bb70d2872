"""Giving a loaded model back: what every task has in common with a file."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from types import TracebackType
from typing import TYPE_CHECKING, Any, Concatenate, NoReturn, ParamSpec, Self, TypeVar

from xattn_runtime.bundle.folder import Bundle
from xattn_runtime.errors import UserError

__all__ = ["Closable", "while_open"]

_Closable = TypeVar("_Closable", bound="Closable")
_Parameters = ParamSpec("_Parameters")
_Result = TypeVar("_Result")


class Closable:
    """A task as a context manager. Closed, it lets its graphs go and refuses every further call.

    Calls that are running when it is closed finish, in this thread and in others: methods that are marked `while_open`
    keep what they use, and the last of them frees it.
    """

    bundle: Bundle
    _is_closed = False
    _is_running = False

    def close(self) -> None:
        """Let graphs, files and tokenizer go, and wait for nothing; closing again does nothing."""
        kept = {name: value for name, value in vars(self).items() if not name.startswith("_")}
        self.__dict__ = {**kept, "_is_closed": True}  # at once: a call that begins meanwhile has all or nothing

    def __enter__(self) -> Self:
        """The task itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close it."""
        self.close()

    def __reduce_ex__(self, protocol: object) -> NoReturn:
        """UserError: threads and mapped files cannot be sent to another process, nor copied."""
        raise UserError(
            f"{self.bundle.path}: expected a bundle's path for another process, found a loaded model, which cannot be "
            "pickled or copied; load it there, or before the process is forked"
        )

    def _running(self) -> Self:
        """The task as it is now, for one call; UserError where it is closed."""
        if self._is_running:
            return self
        parts = vars(self).copy()
        if parts.get("_is_closed"):
            raise self._closed()
        running = object.__new__(type(self))
        running.__dict__ = {**parts, "_is_running": True}
        return running

    def _closed(self) -> UserError:
        return UserError(f"{self.bundle.path}: expected an open model, found one that was closed; load it again")

    if not TYPE_CHECKING:  # else every mistyped name would pass for an attribute

        def __getattr__(self, name: str) -> Any:
            if name.startswith("_") and not name.startswith("__") and self._is_closed:
                raise self._closed()
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")


def while_open(
    method: Callable[Concatenate[_Closable, _Parameters], _Result],
) -> Callable[Concatenate[_Closable, _Parameters], _Result]:
    """A method of a task that finishes as it began even where the task is closed meanwhile.

    Of a closed task it raises UserError. Where it returns an iterator, that too keeps what it uses until it ends.
    """

    @wraps(method)
    def call(self: _Closable, /, *args: _Parameters.args, **kwargs: _Parameters.kwargs) -> _Result:
        return method(self._running(), *args, **kwargs)

    return call
