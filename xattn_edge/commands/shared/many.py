"""Captions of many images into a file of JSON lines, which the next run resumes.

A line is written when its image is done, whole or not at all: what is in the file is done, and nothing else is.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, NamedTuple

from xattn_edge.commands.shared.console import Console, one_line, print_error
from xattn_runtime.bundle.folder import MANIFEST_FILE, file_digest
from xattn_runtime.errors import ImageError, OutputError, UserError

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


def images_in(places: Sequence[Path], *, recursive: bool) -> list[NamedImage]:
    """Images as they are named, and those of folders in the order of their paths; each file once.

    Raises UserError for a folder without an image, and for no image at all.
    """
    from xattn_runtime.preprocess.image_files import image_files

    images: dict[str, NamedImage] = {}
    for place in places:
        files = [place]
        if place.is_dir():
            files = image_files(place, recursive=recursive)
            if not files:
                advice = "name another" if recursive else "name another, or use --recursive"
                raise UserError(f"{place}: expected a folder with images, found none in it; {advice}")
        images |= {file.as_posix(): NamedImage(file, file.as_posix()) for file in files}
    return list(images.values())


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

    Raises OutputError for a file that something else wrote, other settings wrote, or another process is writing.
    """
    from xattn_runtime.files import sync

    images = images_in(places, recursive=recursive)
    made_by = _made_by(task, prompt, options)
    with _opened(output) as stream:
        done = _done(stream, output, made_by)
        waiting = [image for image in images if image.name not in done]
        bad = 0
        with console.progress() as progress:
            progress("captioning", (len(images) - len(waiting)) / len(images))
            paths = [image.path for image in waiting]
            captions = task.caption_many(
                paths, prompt, options=options, batch=batches.size, at_once=batches.at_once, errors="return"
            )
            for number, (image, result) in enumerate(zip(waiting, captions, strict=True), 1):
                _add(stream, _line(image, result, made_by))
                if isinstance(result, ImageError):
                    bad += 1
                    console.exit_code = result.exit_code
                    print_error(str(result))
                progress(f"captioning {image.path.name}", (len(images) - len(waiting) + number) / len(images))
        sync(stream)
    if console.as_json:
        console.document(
            {
                "output": str(output),
                "pictures": len(images),
                "captioned": len(waiting) - bad,
                "bad": bad,
                "done_before": len(images) - len(waiting),
                "provider": task.settings.name,
                "bundle": str(task.bundle.path),
            }
        )
    else:
        done_before = f", {len(images) - len(waiting)} done before" if len(waiting) < len(images) else ""
        refused = f", {bad} that cannot be used" if bad else ""
        console.note(f"{output}: {len(waiting) - bad} images captioned{done_before}{refused}")


def _made_by(task: CaptionTask, prompt: str | None, options: DecodingOptions) -> str:
    """What a caption depends on: the bundle's name, and a digest of the bundle and of what was asked."""
    changed = {name: getattr(options, name) for name in options.non_default} | {"prompt": prompt}
    text = json.dumps([file_digest(task.bundle.path / MANIFEST_FILE), changed], sort_keys=True)
    return f"{task.bundle.manifest.name} {hashlib.sha256(text.encode()).hexdigest()[:12]}"


def _line(image: NamedImage, result: Caption | ImageError, made_by: str) -> bytes:
    values: dict[str, Any] = {"error": str(result)} if isinstance(result, ImageError) else result.to_dict()
    # A name that is no Unicode is written with \ud8xx, which JSON knows.
    return json.dumps({"image": image.name, **values, "made_by": made_by}).encode() + b"\n"


def _add(stream: BinaryIO, line: bytes) -> None:
    stream.write(line)
    stream.flush()


@contextmanager
def _opened(output: Path) -> Iterator[BinaryIO]:
    """The file, to be read and added to, by this process alone."""
    try:
        stream = output.open("a+b")
    except OSError as error:
        raise OutputError(
            f"{output}: expected a file that can be written, found: {one_line(error.strerror or str(error))}; "
            "name another"
        ) from error
    with stream:
        _lock(stream, output)
        yield stream


def _lock(stream: BinaryIO, output: Path) -> None:
    try:
        import fcntl
    except ImportError:  # another system
        return
    try:
        fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        raise OutputError(f"{output}: expected to be the one that writes it, found another; wait for it") from error


def _done(stream: BinaryIO, output: Path, made_by: str) -> set[str]:
    """Names of the images that there are lines for; half a line at the end, from a killed run, is cut off."""
    stream.seek(0)
    content = stream.read()
    whole = content[: content.rfind(b"\n") + 1]
    done = set()
    for number, line in enumerate(whole.splitlines(), 1):
        try:
            entry = json.loads(line)
            name, maker = entry["image"], entry["made_by"]
            if not isinstance(name, str) or not ("caption" in entry or "error" in entry):
                raise ValueError("no caption of an image")
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise OutputError(
                f"{output}: line {number}: expected a caption that this command wrote, found: {one_line(str(error))}; "
                "name another file"
            ) from error
        if maker != made_by:
            raise OutputError(
                f"{output}: line {number}: expected captions of this bundle with these options ({made_by}), found some "
                f"of {maker}; name another file"
            )
        done.add(name)
    if not whole and content and not content.startswith(b'{"image": '):
        raise OutputError(f"{output}: expected captions that this command wrote, found another file; name another")
    stream.truncate(len(whole))
    return done
