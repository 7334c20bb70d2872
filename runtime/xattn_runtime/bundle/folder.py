"""Opening a bundle: nothing of it is used before its manifest, paths, sizes and hashes are right.

It knows files and the manifest, and no graph: ONNX Runtime sees a file only after `open_bundle` has returned.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import NoReturn

from xattn_runtime.arguments import path_text, text
from xattn_runtime.brought_files import is_system_file, placeholder_of
from xattn_runtime.bundle.held_files import FileStamp, HeldFile, stamp_of
from xattn_runtime.bundle.manifest import FileEntry, Manifest, TaskName, parse
from xattn_runtime.bundle.task_table import TASKS
from xattn_runtime.errors import BundleError, problem
from xattn_runtime.json_reader import one_line, show
from xattn_runtime.preprocess.formats import remote_or_inline

__all__ = [
    "MANIFEST_FILE",
    "Bundle",
    "bundle_path",
    "default_bundle",
    "file_digest",
    "open_bundle",
    "parse_manifest_json",
    "shipped_bundles",
]

MANIFEST_FILE = "manifest.json"
_LARGE_FILE_BYTES = 16 * 2**20
_MOST_HASHED_AT_ONCE = 4
_HEAD_BYTES = 1024
_MANIFEST_LIMIT_BYTES = 16 * 2**20


@dataclass(frozen=True)
class Bundle:
    """A bundle whose files have been checked: its folder, as it was named, and its manifest.

    stamps: of the files, as they were checked. root: the same folder without links and from the root of the file
    system, so that it stays the same whatever becomes of links and of the current folder.
    """

    path: Path
    manifest: Manifest
    stamps: Mapping[str, FileStamp] = field(default_factory=dict, repr=False, compare=False)
    root: Path = field(init=False, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "root", Path(os.path.realpath(self.path)))

    def file(self, relative: str) -> Path:
        """Where the listed file `relative` lies.

        BundleError where the manifest does not list it, or it is not as it was when the bundle was opened.
        """
        path = self._listed(relative)
        if relative in self.stamps:
            HeldFile(path, self.manifest.files[relative].sha256, self.stamps[relative])
        return path

    def hold(self, relative: str) -> HeldFile:
        """The listed file `relative`, open for as long as it is kept; raises as `file` does."""
        return HeldFile(self._listed(relative), self.manifest.files[relative].sha256, self.stamps.get(relative))

    def _listed(self, relative: str) -> Path:
        if relative not in self.manifest.files:
            raise BundleError(f"{self.path}: expected a file that {MANIFEST_FILE} lists, found {show(relative)}")
        return self.root / relative


def open_bundle(path: str | os.PathLike[str]) -> Bundle:
    """The bundle in the folder `path`, after checking schema version, paths, sizes and SHA-256 of every file.

    path: a folder; or the name of a bundle that came with this package, with or without `.xattn`.
    Raises BundleError, one line that names the file, for anything missing, truncated, altered, linked or not listed.
    """
    folder = bundle_path(path)
    _check_folder(folder)
    manifest_path = folder / MANIFEST_FILE
    manifest = parse_manifest_json(_read_manifest(manifest_path), str(manifest_path))
    _check_tree(folder, manifest)
    return Bundle(folder, manifest, stamps=_check_files(folder, manifest))


def parse_manifest_json(document: bytes, file: str = MANIFEST_FILE) -> Manifest:
    """The manifest in `document`; BundleError where it is no JSON or no manifest. `file` stands in the errors."""
    try:
        data = json.loads(document, parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:
        raise BundleError(
            f"{file}: expected a JSON document, found {one_line(error)}; copy the bundle again"
        ) from error
    return parse(data, file)


def default_bundle(task: TaskName) -> Path:
    """Folder of the bundle for `task` that came with this package; BundleError where there is none."""
    names = {name: spec.default_bundle for name, spec in TASKS.items() if spec.default_bundle is not None}
    if text("default bundle", task, error=BundleError) not in names:
        raise BundleError(f"default bundle: expected a task of {', '.join(sorted(names))}, found {show(task)}")
    folder = _defaults() / names[task]
    if not (folder / MANIFEST_FILE).is_file():
        raise BundleError(
            f"{folder}: expected the default bundle for {task}, found none; name a bundle with --bundle, "
            "install xattn-edge from its wheel, or run scripts/make_defaults.sh in a checkout"
        )
    return folder


def shipped_bundles() -> dict[str, Path]:
    """The bundles that came with this package: their names, without `.xattn`, and their folders."""
    return {path.stem: path for path in sorted(_defaults().glob("*.xattn")) if (path / MANIFEST_FILE).is_file()}


def bundle_path(path: str | os.PathLike[str]) -> Path:
    """`path`; or, where nothing lies there, the folder of the bundle of that name that came with this package."""
    named = path_text("bundle", path, "a folder or the name of a bundle", error=BundleError)
    if not named:
        raise BundleError("bundle: expected a folder or the name of a bundle, found an empty path; name one")
    folder = Path(named)
    if os.path.lexists(folder):
        return folder
    return shipped_bundles().get(str(folder).removesuffix(".xattn"), folder)


def _defaults() -> Path:
    from importlib import resources

    return Path(str(resources.files("xattn_runtime"))) / "defaults"


def file_digest(path: str | os.PathLike[str]) -> str:
    """SHA-256 of a file, 64 lower-case hexadecimal digits."""
    with Path(path).open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _check_folder(folder: Path) -> None:
    try:
        folder.lstat()
    except FileNotFoundError:
        if remote_or_inline(str(folder)) is not None:
            found = "a URL; download it first, and name its folder"
        else:
            names = ", ".join(shipped_bundles())
            advice = f", or name one that came with this package: {names}" if names else ""
            found = f"nothing; check the path{advice}"
        raise BundleError(f"{folder}: expected a bundle folder, found {found}") from None
    except OSError as error:
        raise BundleError(f"{folder}: expected a bundle folder, found: {problem(error)}") from error
    if not folder.is_dir():
        raise BundleError(
            f"{folder}: expected a bundle folder, found a file; name the folder that holds {MANIFEST_FILE}"
        )
    try:
        (folder / MANIFEST_FILE).lstat()
    except FileNotFoundError:
        raise BundleError(
            f"{folder}: expected a bundle, found no {MANIFEST_FILE} in this folder; check the path"
        ) from None
    except OSError as error:
        raise BundleError(f"{folder}: expected a folder that can be read, found: {problem(error)}") from error


def _read_manifest(path: Path) -> bytes:
    _check_regular(path)
    try:
        size = path.stat().st_size
        if size > _MANIFEST_LIMIT_BYTES:
            raise BundleError(f"{path}: expected at most {_MANIFEST_LIMIT_BYTES} bytes, found {size}")
        text = path.read_bytes()
    except OSError as error:
        _unreadable(path, error)
    _refuse_placeholder(path, text[:_HEAD_BYTES])
    return text


def _refuse_placeholder(path: Path, head: bytes) -> None:
    """BundleError for what a clone without large files, or a failed download, has in place of the file."""
    if (found := placeholder_of(head)) is not None:
        raise BundleError(f"{path}: expected a file of the bundle, found {found}")


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"the number {name}")


def _check_tree(folder: Path, manifest: Manifest) -> None:
    """Refuse links, special files, and whatever the manifest does not list; what a system left there is passed over."""
    listed = {MANIFEST_FILE, *manifest.files}
    folders = {parent.as_posix() for path in manifest.files for parent in Path(path).parents}
    for root, names, files in os.walk(folder, followlinks=False, onerror=_walk_failed):
        for name in names + files:
            path = Path(root) / name
            relative = path.relative_to(folder).as_posix()
            if path.is_symlink():
                raise BundleError(
                    f"{path}: expected a file of the bundle, found a link; copy what it points to instead"
                )
            if is_system_file(name):
                continue
            if relative not in (folders if name in names else listed):
                raise BundleError(
                    f"{path}: expected only what {MANIFEST_FILE} lists, found this besides; remove it or export again"
                )
        names[:] = [name for name in names if not is_system_file(name)]


def _walk_failed(error: OSError) -> NoReturn:
    _unreadable(Path(error.filename or "bundle"), error)


def _check_files(folder: Path, manifest: Manifest) -> dict[str, FileStamp]:
    """Check every file, the large ones side by side: hashing leaves the interpreter free. Their stamps."""
    large = {path: entry for path, entry in manifest.files.items() if entry.bytes >= _LARGE_FILE_BYTES}
    stamps = {
        relative: _check_file(folder / relative, entry)
        for relative, entry in manifest.files.items()
        if relative not in large or len(large) == 1
    }
    if len(large) > 1:
        from concurrent.futures import ThreadPoolExecutor

        with ThreadPoolExecutor(max_workers=_MOST_HASHED_AT_ONCE) as pool:
            checked = pool.map(lambda relative: _check_file(folder / relative, large[relative]), large)
            stamps |= zip(large, checked, strict=True)
    return stamps


def _check_file(path: Path, entry: FileEntry) -> FileStamp:
    _check_regular(path)
    try:
        with path.open("rb") as stream:
            stamp = stamp_of(os.fstat(stream.fileno()))
            if stamp.bytes != entry.bytes:
                _refuse_placeholder(path, stream.read(_HEAD_BYTES))
                raise BundleError(
                    f"{path}: expected {entry.bytes} bytes, found {stamp.bytes}; copy or export the bundle again"
                )
            digest = hashlib.file_digest(stream, "sha256").hexdigest()
    except OSError as error:
        _unreadable(path, error)
    if digest != entry.sha256:
        raise BundleError(
            f"{path}: expected SHA-256 {entry.sha256[:12]}…, found {digest[:12]}…: the file was altered; "
            "copy or export the bundle again"
        )
    return stamp


def _check_regular(path: Path) -> None:
    if path.is_symlink():
        raise BundleError(f"{path}: expected a file of the bundle, found a link; copy what it points to instead")
    if not path.exists():
        raise BundleError(f"{path}: expected a file that {MANIFEST_FILE} lists, found nothing; copy the bundle again")
    if not path.is_file():
        raise BundleError(f"{path}: expected a regular file, found something else; copy the bundle again")


def _unreadable(path: Path, error: OSError) -> NoReturn:
    raise BundleError(f"{path}: expected a readable file, found: {problem(error)}") from error
