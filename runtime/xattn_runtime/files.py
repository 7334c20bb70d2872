"""Files and folders that are written whole or not at all: under a temporary name beside the target, then renamed.

What is written reaches the disk before it gets its name. Whatever goes wrong (a full disk, Ctrl-C, an error of ours)
removes the temporary file or folder, and the previous one stays. A process that is killed leaves
`.NAME.PROCESS-TOKEN.partial`, which the next write of the same target removes (a long NAME is cut).
It does not know what is written.
"""

from __future__ import annotations

import errno
import hashlib
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

from xattn_runtime.errors import OutputError, problem

__all__ = [
    "MARK",
    "atomic_file",
    "atomic_folder",
    "atomic_write",
    "check_folder_writable",
    "check_replaceable",
    "check_writable",
    "is_leftover",
    "not_written",
    "scratch_folder",
    "sweep",
    "sync",
]

MARK = "xattn-edge"
"""Stands near the beginning of every page, chart and image that is written for people, so that it is known again."""

_MARK_WITHIN_BYTES = 1024
_PARTIAL, _OLD = "partial", "old"
_LEFTOVER = re.compile(rf"\.(?P<name>.+)\.(?P<process>\d+)-[0-9a-f]{{8}}\.(?P<kind>{_PARTIAL}|{_OLD})")
_NAME_BYTES = 255  # the longest name of most file systems
_SUFFIX_BYTES = len(".4194304-01234567.partial")  # of the highest process id
# What a file system says that has no way to bring a file to the disk at once; what was written stays written.
_CANNOT_SYNC = frozenset({errno.EINVAL, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP})


def atomic_write(path: Path, content: bytes | str, *, beside: Path | None = None) -> None:
    """Make `content`, a str as UTF-8, all of the file `path`. `beside`: see `atomic_file`. Raises OSError."""
    with atomic_file(path, beside=beside) as temporary:
        temporary.write_bytes(content.encode() if isinstance(content, str) else content)


@contextmanager
def atomic_file(path: Path, *, beside: Path | None = None) -> Iterator[Path]:
    """A name to write a file under, which becomes `path` when the block ends without an error.

    beside: what the temporary file lies beside, in place of `path`: a folder in which no stranger may appear.
    Raises OSError where it cannot be written.
    """
    near = path if beside is None else beside
    sweep(near)
    temporary = _temporary(near)
    try:
        yield temporary
        _sync_path(temporary)
        temporary.replace(path)
        _sync_folder(path.absolute().parent)
    finally:
        with suppress(OSError):  # it was renamed or never made, or nothing can be changed in its folder
            temporary.unlink()


@contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """An empty folder to fill, which replaces `path` when the block ends without an error.

    Raises OSError where it cannot be written, or where `path` is something other than a folder.
    """
    with scratch_folder(path) as staging:
        yield staging
        for file in staging.rglob("*"):
            if file.is_file() and not file.is_symlink():
                _sync_path(file)
        _move_into_place(staging, path.absolute())
        _sync_folder(path.absolute().parent)


@contextmanager
def scratch_folder(path: Path) -> Iterator[Path]:
    """An empty folder on the disk of `path`, beside it, for work that is thrown away when the block ends."""
    sweep(path)
    folder = _temporary(path.absolute())
    folder.mkdir()
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def check_writable(path: Path) -> None:
    """Raise the OSError that `atomic_write` would, so that no work is done for a result that cannot be saved."""
    if path.is_dir():
        raise IsADirectoryError(errno.EISDIR, "it is a folder")
    check_folder_writable(path)


def check_folder_writable(path: Path) -> None:
    """Raise the OSError that `atomic_folder` would where nothing of the name of `path` can be made."""
    temporary = _temporary(path)
    temporary.touch()
    temporary.unlink()


def check_replaceable(path: Path) -> None:
    """OutputError where `path` is a file that people would miss: one that has something in it, and no `MARK`."""
    try:
        with path.open("rb") as stream:
            beginning = stream.read(_MARK_WITHIN_BYTES)
    except OSError:  # nothing there, or nothing that can be replaced, which writing says
        return
    if beginning and MARK.encode() not in beginning:
        raise OutputError(
            f"{path}: expected a new file, or one that {MARK} wrote before, found another; name another, or remove it"
        )


def sync(stream: IO[bytes]) -> None:
    """Flush `stream` to the disk, where its file system can."""
    stream.flush()
    _sync_descriptor(stream.fileno())


def sweep(path: Path) -> None:
    """Remove what killed processes left of writing `path`, and move a folder back that one had moved aside."""
    name = _shortened(path.name)
    with suppress(OSError):  # no folder, or one that cannot be read: then there is nothing to sweep
        for left in path.absolute().parent.iterdir():
            parts = _LEFTOVER.fullmatch(left.name)
            if parts and parts["name"] == name and not _is_running(int(parts["process"])):
                if parts["kind"] == _OLD and not os.path.lexists(path):
                    left.rename(path)
                elif left.is_dir() and not left.is_symlink():
                    shutil.rmtree(left, ignore_errors=True)
                else:
                    left.unlink()


def is_leftover(name: str) -> bool:
    """Whether a file or folder of this name is one that is being written, or that a killed process left."""
    return _LEFTOVER.fullmatch(name) is not None


def not_written(path: Path, error: OSError) -> OutputError:
    """The error for a `path` that cannot be written."""
    return OutputError(f"{path}: cannot be written: {problem(error)}")


def _temporary(path: Path, kind: str = _PARTIAL) -> Path:
    return path.with_name(f".{_shortened(path.name)}.{os.getpid()}-{os.urandom(4).hex()}.{kind}")


def _shortened(name: str) -> str:
    """`name`, or where a temporary name of it is longer than file systems allow, its beginning and its hash."""
    encoded, room = os.fsencode(name), _NAME_BYTES - _SUFFIX_BYTES - 1
    if len(encoded) <= room:
        return name
    digest = hashlib.sha256(encoded).hexdigest()[:8]
    return f"{encoded[: room - len(digest) - 1].decode(errors='ignore')}-{digest}"


def _move_into_place(staging: Path, target: Path) -> None:
    """Rename `staging` to `target`; a folder of that name is moved aside first, and moved back if that fails."""
    aside = _temporary(target, _OLD)
    try:
        if os.path.lexists(target):
            if target.is_symlink() or not target.is_dir():
                raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(target))
            target.rename(aside)
        staging.rename(target)
    finally:
        if os.path.lexists(aside):
            if os.path.lexists(target):
                shutil.rmtree(aside, ignore_errors=True)
            else:
                aside.rename(target)


def _sync_path(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY if os.name == "posix" else os.O_RDWR)
    try:
        _sync_descriptor(descriptor)
    finally:
        os.close(descriptor)


def _sync_descriptor(descriptor: int) -> None:
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in _CANNOT_SYNC:
            raise


def _sync_folder(folder: Path) -> None:
    """Bring a new name to the disk, where the system can."""
    if os.name == "posix":
        with suppress(OSError):  # not every file system can
            _sync_path(folder)


def _is_running(process: int) -> bool:
    if os.name != "posix":  # elsewhere asking ends the process
        return True
    try:
        os.kill(process, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except OSError:
        return True
    return True
