"""An index: the embeddings of a folder of images in one file, which is mapped into memory and searched.

```
8 bytes     XATTNIDX
8 bytes     length of the header, little-endian
header      JSON: version, bundle, folder, width, files: [[name, bytes, mtime_ns], …]; blanks up to a multiple of 64
embeddings  float32, little-endian, [files, width], each of length 1
```

It knows files and embeddings, and no graph. What another bundle embedded is another space, so that the index names its
own by a digest of graphs, tokenizer and preprocessing.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from xattn_runtime.bundle.folder import Bundle
from xattn_runtime.errors import ImageError, IndexFileError, OutputError, UserError, problem
from xattn_runtime.files import atomic_file, check_writable
from xattn_runtime.json_reader import one_line, show
from xattn_runtime.preprocess.image_files import IMAGE_SUFFIXES, image_files, is_image_file
from xattn_runtime.progress import Progress, silent
from xattn_runtime.retrieval.match import Embedder, Embeddings

__all__ = [
    "ImageIndex",
    "IndexReport",
    "IndexedImage",
    "bundle_digest",
    "embed_folder",
    "open_index",
    "update_index",
]

_MAGIC = b"XATTNIDX"
_VERSION = 1
_ALIGNED = 64
_BATCH = 16
_MOST_HEADER_BYTES = 2**30
_MOST_NAMED = 3


@dataclass(frozen=True)
class IndexedImage:
    """An image of an index, and what its file was when it was embedded."""

    name: str
    bytes: int
    mtime_ns: int


@dataclass(frozen=True)
class ImageIndex:
    """An index, open: `embeddings` `[files, width]` are mapped from the file and read as they are needed."""

    path: Path
    folder: Path
    files: tuple[IndexedImage, ...]
    embeddings: Embeddings

    def image(self, row: int) -> Path:
        """Where the image of a row lies."""
        return self.folder / self.files[row].name


@dataclass(frozen=True)
class IndexReport:
    """What `update_index` did: images in the index, of them embedded now, gone from it, and those it cannot use."""

    index: ImageIndex
    embedded: int
    removed: int
    refused: tuple[ImageError, ...]


def bundle_digest(bundle: Bundle) -> str:
    """SHA-256 of what makes embeddings: graphs with their weights, tokenizer, preprocessing."""
    manifest = bundle.manifest.to_dict()
    golden = {path for case in bundle.manifest.golden.cases for path in (case.image, case.tensors)}
    files = {path: entry["sha256"] for path, entry in manifest["files"].items() if path not in golden}
    made_of = {"files": files, "preprocessing": manifest["preprocessing"], "tokenizer": manifest["tokenizer"]}
    return hashlib.sha256(json.dumps(made_of, sort_keys=True).encode()).hexdigest()


def open_index(path: Path, bundle: Bundle) -> ImageIndex:
    """The index in the file `path`, which `bundle` must have made.

    Raises:
        IndexFileError: nothing there, another kind of file, a damaged one, or one that another bundle made.
    """
    if not os.path.lexists(path):
        raise IndexFileError(f"{path}: expected an index, found no such file; make it with --in, or check the path")
    try:
        header, start = _read_header(path)
        files = tuple(IndexedImage(str(name), int(size), int(time)) for name, size, time in header["files"])
        width, made_by, folder = int(header["width"]), header["bundle"], Path(str(header["folder"]))
        name, digest = str(made_by["name"]), str(made_by["digest"])
        expected = start + 4 * len(files) * width
        if path.stat().st_size != expected:
            raise ValueError(f"{path.stat().st_size} bytes in place of {expected}")
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise IndexFileError(
            f"{path}: expected an index that `xattn-edge retrieve --index` wrote, found: {one_line(error)}; "
            "remove it, or name another file"
        ) from error
    if digest != bundle_digest(bundle):
        raise IndexFileError(
            f"{path}: expected an index made by {bundle.path} ({bundle_digest(bundle)[:12]}…), found one made by the "
            f"bundle {show(name)} ({digest[:12]}…), which embeds otherwise; name that bundle, or another index file"
        )
    embeddings: Embeddings = np.zeros((0, width), dtype=np.float32)
    if files:
        embeddings = np.memmap(path, dtype="<f4", mode="r", offset=start, shape=(len(files), width))
    return ImageIndex(path, folder, files, embeddings)


def update_index(embedder: Embedder, folder: Path, path: Path, progress: Progress = silent) -> IndexReport:
    """Make the file `path` the index of the images in `folder`; what it holds already and is unchanged is kept.

    Images that cannot be used are left out and reported. The file is replaced when all is done, or not at all.

    Raises:
        IndexFileError: `path` holds something else, or the index of another bundle or folder.
        UserError: no folder, no image in it, or a folder that changed meanwhile; names what did.
        OutputError: `path` cannot be written.
    """
    files, gone = indexable_images(folder)
    if path.parent.resolve() == folder.resolve() and is_image_file(path):
        raise OutputError(f"{path}: expected a name that is not that of an image, found {path.suffix}")
    old = _old_index(path, embedder.bundle, folder)
    rows = {} if old is None else {file: row for row, file in enumerate(old.files)}
    new = [file for file in files if file not in rows]
    _check_writable(path)
    embedded, refused = _embed(embedder, folder, new, progress)
    _check_unchanged(folder, files)
    indexed = [file for file in files if file in rows or file in embedded]
    embeddings = [
        old.embeddings[rows[file]] if old is not None and file in rows else embedded[file] for file in indexed
    ]
    removed = len(set(rows) - set(files))
    if old is None or new or removed:
        _write(path, folder, embedder.bundle, indexed, embeddings, embedder.width)
    return IndexReport(open_index(path, embedder.bundle), len(embedded), removed, (*gone, *refused))


def embed_folder(embedder: Embedder, folder: Path, progress: Progress = silent) -> IndexReport:
    """The same index in memory alone, of all images in `folder`.

    Raises:
        UserError: no folder, no image in it, or a folder that changed meanwhile; names what did.
    """
    files, gone = indexable_images(folder)
    embedded, refused = _embed(embedder, folder, files, progress)
    _check_unchanged(folder, files)
    embeddings = np.stack(list(embedded.values())) if embedded else np.zeros((0, embedder.width), dtype=np.float32)
    return IndexReport(ImageIndex(folder, folder, tuple(embedded), embeddings), len(embedded), 0, (*gone, *refused))


def indexable_images(folder: Path) -> tuple[list[IndexedImage], list[ImageError]]:
    """The images that lie in a folder, by name, and why others cannot be looked at, such as a link to nothing.

    Raises:
        UserError: no folder, or none in it.
    """
    if not folder.is_dir():
        kind = "a file" if folder.exists() else "nothing"
        raise UserError(f"{folder}: expected a folder of images, found {kind}; check the path")
    files, gone = _list(folder)
    if not files and not gone:
        raise UserError(
            f"{folder}: expected images ({', '.join(IMAGE_SUFFIXES)}), found none; name the folder that has them"
        )
    return files, gone


def _list(folder: Path) -> tuple[list[IndexedImage], list[ImageError]]:
    files, gone = [], []
    for path in image_files(folder):
        try:
            status = path.stat()
        except OSError as error:
            gone.append(ImageError(f"{path}: expected a readable image, found: {problem(error)}"))
        else:
            files.append(IndexedImage(path.name, status.st_size, status.st_mtime_ns))
    return files, gone


def _old_index(path: Path, bundle: Bundle, folder: Path) -> ImageIndex | None:
    if not os.path.lexists(path):
        return None
    old = open_index(path, bundle)
    if old.folder != folder.resolve():
        raise IndexFileError(
            f"{path}: expected the index of {folder.resolve()}, found that of {old.folder}; name another index file"
        )
    return old


def _embed(
    embedder: Embedder, folder: Path, files: Sequence[IndexedImage], progress: Progress
) -> tuple[dict[IndexedImage, Embeddings], list[ImageError]]:
    """Embeddings of the files that can be used, several a run, and why the others cannot."""
    embedded: dict[IndexedImage, Embeddings] = {}
    refused: list[ImageError] = []
    for start in range(0, len(files), _BATCH):
        progress("embedding images", start / len(files))
        batch = files[start : start + _BATCH]
        try:
            embedded |= zip(batch, embedder.embed_images([folder / file.name for file in batch]), strict=True)
        except ImageError:  # one by one, so that the others continue
            for file in batch:
                try:
                    embedded[file] = embedder.embed_images([folder / file.name])[0]
                except ImageError as error:
                    refused.append(error)
    return embedded, refused


def _check_unchanged(folder: Path, files: Sequence[IndexedImage]) -> None:
    try:
        after, _ = _list(folder)
    except OSError as error:
        raise UserError(f"{folder}: changed while it was indexed: {one_line(error)}; run it again") from error
    if after == list(files):
        return
    was, now = {file.name: file for file in files}, {file.name: file for file in after}
    changes = {
        "added": sorted(now.keys() - was.keys()),
        "gone": sorted(was.keys() - now.keys()),
        "altered": sorted(name for name in was.keys() & now.keys() if was[name] != now[name]),
    }
    listed = "; ".join(
        f"{len(names)} {kind} ({', '.join(map(show, names[:_MOST_NAMED]))}{', …' if names[_MOST_NAMED:] else ''})"
        for kind, names in changes.items()
        if names
    )
    raise UserError(
        f"{folder}: expected a folder that stays as it is while it is indexed, found {listed}; nothing was written: "
        "run it again when the folder is at rest"
    )


def _check_writable(path: Path) -> None:
    try:
        check_writable(path)
    except OSError as error:
        raise _not_written(path, error) from error


def _not_written(path: Path, error: OSError) -> OutputError:
    return OutputError(f"{path}: expected a file that can be written, found: {problem(error)}")


def _read_header(path: Path) -> tuple[dict[str, Any], int]:
    """The header, and where the embeddings begin."""
    if path.exists() and not path.is_file():  # opening a pipe would wait for who writes into it
        raise ValueError("no regular file")
    with path.open("rb") as stream:
        if stream.read(len(_MAGIC)) != _MAGIC:
            raise ValueError("another kind of file")
        length = int.from_bytes(stream.read(8), "little")
        if not 0 < length <= min(_MOST_HEADER_BYTES, path.stat().st_size):
            raise ValueError(f"a header of {length} bytes")
        header = json.loads(stream.read(length))
    if not isinstance(header, dict) or header.get("version") != _VERSION:
        raise ValueError("a header of another version")
    return header, len(_MAGIC) + 8 + length


def _write(
    path: Path,
    folder: Path,
    bundle: Bundle,
    files: Sequence[IndexedImage],
    embeddings: Sequence[Embeddings],
    width: int,
) -> None:
    header = {
        "version": _VERSION,
        "bundle": {"name": bundle.manifest.name, "digest": bundle_digest(bundle)},
        "folder": str(folder.resolve()),
        "width": width,
        "files": [[file.name, file.bytes, file.mtime_ns] for file in files],
    }
    text = json.dumps(header).encode()
    text += b" " * (-(len(_MAGIC) + 8 + len(text)) % _ALIGNED)
    try:
        with atomic_file(path) as temporary, temporary.open("wb") as stream:
            stream.write(_MAGIC + len(text).to_bytes(8, "little") + text)
            for row in embeddings:
                stream.write(np.asarray(row, dtype="<f4").tobytes())
    except OSError as error:
        raise _not_written(path, error) from error
