"""Writes a bundle, all of it or none, and lists its files. It knows files and the manifest, and no graph."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

from xattn_runtime.brought_files import is_system_file
from xattn_runtime.bundle.folder import MANIFEST_FILE, file_digest
from xattn_runtime.bundle.manifest import FileEntry, Manifest
from xattn_runtime.errors import OutputError, XattnError
from xattn_runtime.files import atomic_folder, check_folder_writable, not_written

__all__ = ["StagedBundle", "check_output", "manifest_document", "staged_bundle"]


@dataclass(frozen=True)
class StagedBundle:
    """A bundle that is being written, in a temporary folder."""

    folder: Path
    _files: dict[str, FileEntry] = field(default_factory=dict)

    def write(self, relative: str, content: bytes) -> Path:
        """Write a file of the bundle."""
        path = self.folder / relative
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
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
        OutputError: it exists (with `overwrite`: and is no bundle, or holds other files too), or its folder is missing
            or not writable.
    """
    if os.path.lexists(output):
        if not overwrite:
            raise OutputError(f"{output}: already exists; name another place, or replace it with --overwrite")
        _check_replaceable(output)
    parent = output.absolute().parent
    if not parent.is_dir():
        raise OutputError(f"{output}: expected an existing folder to write into, found no {parent}; make it first")
    if not os.access(parent, os.W_OK | os.X_OK):
        raise OutputError(f"{output}: cannot be written: no permission to write into {parent}; name another place")
    try:
        check_folder_writable(output)
    except OSError as error:
        raise not_written(output, error) from error


def _check_replaceable(output: Path) -> None:
    """OutputError unless `output` is a bundle, whole or damaged, and holds nothing but what its manifest lists."""
    try:
        if output.is_symlink():
            raise ValueError("a link")
        manifest = json.loads((output / MANIFEST_FILE).read_bytes())
        listed = {MANIFEST_FILE, *manifest["files"]}
        if "schema_version" not in manifest:
            raise ValueError("a manifest of another program")
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise OutputError(
            f"{output}: expected a bundle to overwrite, found something else; name another place"
        ) from error
    for root, _, names in os.walk(output):
        for name in names:
            path = Path(root, name)
            if path.relative_to(output).as_posix() not in listed and not is_system_file(name):
                raise OutputError(f"{output}: expected a bundle to overwrite, found {path} in it; move that elsewhere")


@contextmanager
def staged_bundle(output: Path, *, overwrite: bool) -> Iterator[StagedBundle]:
    """A folder to write a bundle into, which becomes `output` when the block ends without an error.

    Raises:
        OutputError: as `check_output`; or the files cannot be written, for lack of space or permission.
    """
    check_output(output, overwrite=overwrite)
    try:
        with atomic_folder(output) as staging:
            try:
                yield StagedBundle(staging)
            except XattnError as error:  # what is said of the bundle names the one that was to be written
                if str(staging) not in str(error):
                    raise
                raise type(error)(str(error).replace(str(staging), str(output))) from error
            check_output(output, overwrite=overwrite)
    except OSError as error:
        raise not_written(output, error) from error
