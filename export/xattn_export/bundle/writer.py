"""Writes a bundle so that there is all of it or none: under a temporary name beside the target, renamed when whole.

Whatever goes wrong (a full disk, Ctrl-C, an error of ours) takes the temporary folder away, and a bundle that was to be
replaced stays or comes back. It knows files and the manifest, and no graph.
"""

from __future__ import annotations

import errno
import json
import os
import re
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

from xattn_runtime.bundle.folder import MANIFEST_FILE, file_digest
from xattn_runtime.bundle.manifest import FileEntry, Manifest
from xattn_runtime.errors import OutputError
from xattn_runtime.json_reader import one_line

__all__ = ["StagedBundle", "check_output", "manifest_document", "not_written", "staged_bundle"]

_ADVICE = {
    errno.EACCES: "check the permissions of its folder",
    errno.EDQUOT: "free some space or name another place",
    errno.ENAMETOOLONG: "choose a shorter name",
    errno.ENOSPC: "free some space or name another place",
    errno.EPERM: "check the permissions of its folder",
    errno.EROFS: "name another place",
}


@dataclass(frozen=True)
class StagedBundle:
    """A bundle in the making."""

    folder: Path
    _files: dict[str, FileEntry] = field(default_factory=dict)

    def write(self, relative: str, content: bytes) -> Path:
        """Write a file of the bundle through to the disk."""
        path = self.folder / relative
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("wb") as stream:
            stream.write(content)
            stream.flush()
            os.fsync(stream.fileno())
        self._files[relative] = FileEntry(file_digest(path), len(content))
        return path

    def adopt(self, relative: str) -> int:
        """List a file that was written into the folder by other means; its size in bytes."""
        path = self.folder / relative
        size = path.stat().st_size
        self._files[relative] = FileEntry(file_digest(path), size)
        return size

    def remove(self, relative: str) -> None:
        """Take back a file that was written."""
        (self.folder / relative).unlink()
        del self._files[relative]

    def write_manifest(self, manifest: Manifest) -> Manifest:
        """Write `manifest` with the sizes and hashes of the files written; the last thing to write, or write again."""
        listed = replace(manifest, files={path: self._files[path] for path in sorted(self._files)})
        self.write(MANIFEST_FILE, manifest_document(listed))
        del self._files[MANIFEST_FILE]
        return listed

    @property
    def bytes(self) -> int:
        """Size of all files but the manifest."""
        return sum(entry.bytes for entry in self._files.values())


def manifest_document(manifest: Manifest) -> bytes:
    """The content of manifest.json."""
    return f"{json.dumps(manifest.to_dict(), indent=2, ensure_ascii=False, allow_nan=False)}\n".encode()


def check_output(output: Path, *, overwrite: bool) -> None:
    """Refuse an output that cannot become a bundle, before any work is done.

    Raises:
        OutputError: it exists (with `overwrite`: and is no bundle), or its folder is missing or not writable.
    """
    if os.path.lexists(output):
        if not overwrite:
            raise OutputError(f"{output}: already exists; name another place, or replace it with --overwrite")
        if output.is_symlink() or not (output / MANIFEST_FILE).is_file():
            raise OutputError(f"{output}: expected a bundle to overwrite, found something else; name another place")
    parent = output.absolute().parent
    if not parent.is_dir():
        raise OutputError(f"{output}: expected an existing folder to write into, found no {parent}; make it first")
    if not os.access(parent, os.W_OK | os.X_OK):
        raise OutputError(f"{output}: cannot be written: no permission to write into {parent}; name another place")


@contextmanager
def staged_bundle(output: Path, *, overwrite: bool) -> Iterator[StagedBundle]:
    """A folder to write a bundle into, which becomes `output` when the block ends without an error.

    Raises:
        OutputError: as `check_output`; or the files cannot be written, for want of space or permission.
    """
    check_output(output, overwrite=overwrite)
    target = output.absolute()
    token = f"{os.getpid()}-{secrets.token_hex(4)}"
    staging = target.with_name(f".{target.name}.{token}.partial")
    _sweep(target)
    try:
        staging.mkdir()
        yield StagedBundle(staging)
        check_output(output, overwrite=overwrite)
        _move_into_place(staging, target, target.with_name(f".{target.name}.{token}.old"))
    except OSError as error:
        raise not_written(output, error) from error
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def _sweep(target: Path) -> None:
    """Remove what processes that were killed left of `target`."""
    for left in target.parent.iterdir():
        found = re.fullmatch(rf"\.{re.escape(target.name)}\.(\d+)-[0-9a-f]{{8}}\.partial", left.name)
        if found and not _is_running(int(found[1])):
            shutil.rmtree(left, ignore_errors=True)


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


def not_written(path: Path, error: OSError) -> OutputError:
    """What to say when `path` cannot be written."""
    advice = _ADVICE.get(error.errno or 0, "check the path")
    return OutputError(f"{path}: cannot be written: {error.strerror or one_line(error)}; {advice}")


def _move_into_place(staging: Path, target: Path, aside: Path) -> None:
    """Rename `staging` to `target`; a bundle that is there goes `aside` first, and comes back if that fails."""
    try:
        if os.path.lexists(target):
            target.rename(aside)
        staging.rename(target)
    finally:
        if os.path.lexists(aside):
            if os.path.lexists(target):
                shutil.rmtree(aside, ignore_errors=True)
            else:
                aside.rename(target)
