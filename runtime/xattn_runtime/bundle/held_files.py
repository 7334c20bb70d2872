"""Files of a bundle that are read later: what they hold stays as it was when the bundle was opened.

A held file outlives its folder: it may be moved, replaced or removed, and the file is copied to a place of its own when
it is needed. It knows bytes, and nothing of what they mean.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from xattn_runtime.errors import BundleError
from xattn_runtime.json_reader import one_line

__all__ = ["FileStamp", "HeldFile", "on_disk", "stamp_of"]

_CHUNK_BYTES = 2**20
# Asking the system for a file's time takes as long as a hundredth of a decoding step of the smallest models.
_CHECKED_EVERY_S = 0.02


@dataclass(frozen=True)
class FileStamp:
    """Which file it is, and when it was last written: with the same stamp it holds the same bytes."""

    device: int
    inode: int
    bytes: int
    mtime_ns: int

    def is_same_file(self, other: FileStamp) -> bool:
        """Whether both are stamps of one file, written in between or not."""
        return (self.device, self.inode) == (other.device, other.inode)


def stamp_of(status: os.stat_result) -> FileStamp:
    """The stamp in what the system says of a file."""
    return FileStamp(status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns)


class HeldFile:
    """A file that stays open until nobody needs it any more; safe in several threads, and in a forked process."""

    def __init__(self, path: Path, sha256: str | None = None, stamp: FileStamp | None = None) -> None:
        """Open the file `path`. `sha256`: of its bytes, and `stamp`: what it had, both when it was checked.

        Raises BundleError where it is gone, or holds something else since then.
        """
        self.path, self._sha256, self._checked_at = path, sha256, 0.0
        try:
            self._descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_BINARY", 0))
        except OSError as error:
            raise BundleError(
                f"{path}: expected the file as it was when the bundle was opened, found: {one_line(error)}; "
                "load the bundle again"
            ) from error
        found = stamp_of(os.fstat(self._descriptor))
        self._stamp = found if stamp is None else stamp
        self._file = found
        self.check()

    def check(self) -> None:
        """BundleError where the very file was written into since it was opened, and holds other bytes now."""
        if (found := self._found()) is None or found == self._stamp:
            return
        if self._digest() != self._sha256:
            raise BundleError(
                f"{self.path}: expected the file as it was when the bundle was loaded, found that it has changed; "
                "load the bundle again, and replace a bundle by a folder of the same name, never file by file"
            )
        self._stamp = found  # touched, or copied over itself

    def check_now_and_then(self) -> None:
        """`check`, but not many times a second: it costs nothing in the midst of decoding."""
        now = time.monotonic()
        if now - self._checked_at > _CHECKED_EVERY_S:
            self._checked_at = now
            self.check()

    def is_in_place(self) -> bool:
        """Whether the path still leads to these bytes."""
        try:
            with self.path.open("rb") as stream:
                return stamp_of(os.fstat(stream.fileno())) == self._stamp
        except OSError:
            return False

    def copy_to(self, path: Path) -> None:
        """Write its bytes into the new file `path`; BundleError where it is no longer open."""
        if self._found() is None:
            raise BundleError(
                f"{self.path}: expected the file as it was when the bundle was loaded, found another or none, and that "
                "this process has closed all its files; load the bundle again"
            )
        with path.open("xb") as stream:
            for chunk in self._chunks():
                stream.write(chunk)

    def _found(self) -> FileStamp | None:
        """Its stamp now; None where the descriptor is no longer ours, as in a daemon that has closed all of them."""
        try:
            found = stamp_of(os.fstat(self._descriptor))
        except OSError:
            return None
        return found if found.is_same_file(self._file) else None

    def _digest(self) -> str:
        digest = hashlib.sha256()
        for chunk in self._chunks():
            digest.update(chunk)
        return digest.hexdigest()

    def _chunks(self) -> Iterator[bytes]:
        """Its bytes. The place of reading is nobody's: a forked process has the same descriptor."""
        if not hasattr(os, "pread"):  # Windows, where nothing forks; another thread opens the file anew as well
            with self.path.open("rb") as stream:
                yield from iter(lambda: stream.read(_CHUNK_BYTES), b"")
            return
        place = 0
        while chunk := os.pread(self._descriptor, _CHUNK_BYTES, place):
            place += len(chunk)
            yield chunk

    def __del__(self) -> None:
        """Close it."""
        try:
            if self._found() is not None:
                os.close(self._descriptor)
        except (AttributeError, OSError, TypeError):  # never opened; or the interpreter ends, and modules are gone
            return


@contextlib.contextmanager
def on_disk(files: Sequence[HeldFile]) -> Iterator[Path]:
    """Where the first of `files` lies, with all others beside it: in the bundle, or in copies that are then removed.

    Raises BundleError where one was written into, or the copies find no room.
    """
    for file in files:
        file.check()
    if all(file.is_in_place() for file in files):
        yield files[0].path
        return
    with tempfile.TemporaryDirectory(prefix="xattn-", ignore_cleanup_errors=True) as folder:
        try:
            for file in files:
                file.copy_to(Path(folder) / file.path.name)
        except OSError as error:
            raise BundleError(
                f"{files[0].path}: expected the file as it was when the bundle was loaded, or room for a copy of it, "
                f"found: {one_line(error)}; load the bundle again"
            ) from error
        yield Path(folder) / files[0].path.name
