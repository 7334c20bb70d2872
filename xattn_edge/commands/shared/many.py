"""Captions of many images into a file of JSON lines, which the next run resumes.

A line is written when its image is done, whole or not at all: what is in the file is done, and nothing else is.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from xattn_edge.commands.shared.caption_file import caption_file
from xattn_edge.commands.shared.console import Console, one_line
from xattn_edge.commands.shared.input import STANDARD_STREAM
from xattn_runtime.bundle.folder import MANIFEST_FILE, file_digest
from xattn_runtime.errors import ImageError, UserError

if TYPE_CHECKING:
    from xattn_runtime.bundle.folder import Bundle
    from xattn_runtime.tasks import Caption, CaptionTask, DecodingOptions

__all__ = ["Batches", "NamedImage", "caption_to_file", "images_in", "open_for_many"]

# The operators of larger graphs have work for several threads and cores without many images, whose activations cost
# memory: BLIP-base is as fast with two as with eight, in half the memory.
_SMALL_BYTES = 64 * 2**20
_BATCH, _BATCH_OF_LARGE = 8, 2


@dataclass(frozen=True)
class NamedImage:
    """An image, and what the file of captions calls it."""

    path: Path
    name: str


class Batches(NamedTuple):
    """How many images are captioned together, and on how many such batches the model is at work at once."""

    size: int
    at_once: int


def images_in(places: Sequence[Path], console: Console, *, recursive: bool) -> list[NamedImage]:
    """Images as they are named, and those of folders in the natural order of their paths; each file once.

    A folder without an image or that cannot be read is refused, and the others continue.
    """
    from xattn_runtime.brought_files import is_folder
    from xattn_runtime.preprocess.image_files import image_files

    images: dict[str, NamedImage] = {}
    for place in places:
        files = [place]
        if is_folder(place):
            unreadable: list[OSError] = []
            try:
                files = image_files(place, recursive=recursive, on_unreadable=unreadable.append)
            except OSError as error:
                files, unreadable = [], [error]
            for problem in unreadable:
                console.refuse(_unreadable(problem))
            if not files and not unreadable:
                advice = "name another" if recursive else "name another, or use --recursive"
                console.refuse(UserError(f"{place}: expected a folder with images, found none in it; {advice}"))
        images |= {file.as_posix(): NamedImage(file, file.as_posix()) for file in files}
    return list(images.values())


def _unreadable(error: OSError) -> UserError:
    reason = one_line(error.strerror or str(error)).lower()
    return UserError(f"{error.filename}: expected a folder that can be read, found: {reason}; check its permissions")


def open_for_many(bundle: Bundle, provider: str, threads: int | None) -> tuple[CaptionTask, Batches]:
    """The bundle loaded to caption many images, and in which batches it is to do so.

    Threads that share the operators of a small model wait for each other longer than they compute; so it gets one, and
    every core a batch of its own. What `threads` asks for, and another provider, is obeyed.
    """
    from xattn_runtime.execution.session import default_threads
    from xattn_runtime.loader import load

    held = (entry.bytes for name, entry in bundle.manifest.files.items() if name.startswith("graphs/"))
    is_small = sum(held) < _SMALL_BYTES
    if provider == "cpu" and is_small and threads is None:
        return load(bundle, provider, 1, task="caption"), Batches(_BATCH, default_threads())
    size = _BATCH if is_small or provider != "cpu" else _BATCH_OF_LARGE
    return load(bundle, provider, threads, task="caption"), Batches(size, 1)


def caption_to_file(
    console: Console,
    task: CaptionTask,
    places: Sequence[Path],
    output: Path,
    prompt: str | None,
    options: DecodingOptions,
    *,
    recursive: bool,
    batches: Batches,
) -> None:
    """Caption the images that `output` has no line for, and add a line for each; those that are bad get one too.

    `-` as the output is standard output, which nothing resumes. Raises as `caption_file`.
    """
    images = images_in(places, console, recursive=recursive)
    if not images:
        return
    made_by = _made_by(task, prompt, options)

    def write(waiting: Sequence[NamedImage], add: Callable[[dict[str, Any]], None]) -> int:
        """Add a line for each image; the number of those that are bad."""
        bad, before = 0, len(images) - len(waiting)
        with console.progress() as progress:
            progress("captioning", before / len(images))
            paths = [image.path for image in waiting]
            captions = task.caption_each(
                paths, prompt, options=options, batch=batches.size, at_once=batches.at_once, errors="return"
            )
            for number, (image, result) in enumerate(zip(waiting, captions, strict=True), 1):
                add(_line(image, result, made_by))
                if isinstance(result, ImageError):
                    bad += 1
                    console.refuse(result)
                progress(f"captioning {image.path.name}", (before + number) / len(images))
        return bad

    if str(output) == STANDARD_STREAM:
        write(images, console.json_line)
        return
    with caption_file(output, made_by, console.warn) as file:
        waiting = [image for image in images if image.name not in file.done]
        # A name that is no Unicode is written with \ud8xx, which JSON knows.
        bad = write(waiting, lambda line: file.add(json.dumps(line).encode()))
    _summarize(console, task, output, len(images), len(waiting), bad)


def _summarize(console: Console, task: CaptionTask, output: Path, images: int, waiting: int, bad: int) -> None:
    if console.as_json:
        console.document(
            {
                "output": str(output),
                "pictures": images,
                "captioned": waiting - bad,
                "bad": bad,
                "done_before": images - waiting,
                "provider": task.settings.name,
                "bundle": str(task.bundle.path),
            }
        )
    else:
        done_before = f", {images - waiting} done before" if waiting < images else ""
        refused = f", {bad} that cannot be used" if bad else ""
        console.note(f"{output}: {waiting - bad} images captioned{done_before}{refused}")


def _made_by(task: CaptionTask, prompt: str | None, options: DecodingOptions) -> str:
    """What a caption depends on: the bundle's name, and a digest of the bundle and of what was asked."""
    changed = {name: getattr(options, name) for name in options.non_default} | {"prompt": prompt}
    text = json.dumps([file_digest(task.bundle.path / MANIFEST_FILE), changed], sort_keys=True)
    return f"{task.bundle.manifest.name} {hashlib.sha256(text.encode()).hexdigest()[:12]}"


def _line(image: NamedImage, result: Caption | ImageError, made_by: str) -> dict[str, Any]:
    values: dict[str, Any] = {"error": str(result)} if isinstance(result, ImageError) else result.to_dict()
    return {"image": image.name, **values, "made_by": made_by}
