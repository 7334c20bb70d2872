"""Many images: the next ones are opened and preprocessed in threads while the model works on the last.

It keeps them in order and their number within bounds; what the model does with them is the caller's affair.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING, Self, TypeVar

from xattn_runtime.errors import ImageError, UserError
from xattn_runtime.execution.session import default_threads
from xattn_runtime.tasks.shared.image_encoder import EncodedImage, ImageReader, PreparedImage

if TYPE_CHECKING:
    from xattn_runtime.preprocess.image import ImageInput

__all__ = ["compute_many", "prefetch_images"]

_Part = TypeVar("_Part")
_Result = TypeVar("_Result")
_Ready = PreparedImage | EncodedImage | ImageError


def prefetch_images(
    reader: ImageReader, images: Iterable[ImageInput | EncodedImage], batch: int
) -> Iterator[list[PreparedImage | EncodedImage | ImageError]]:
    """The images in order, `batch` at a time, ready for `reader`, or why one cannot be used; encoded ones as they are.

    At most two batches are prefetched, so that memory stays as it is however many images there are.
    """

    def prepare(image: ImageInput | EncodedImage) -> _Ready:
        try:
            return image if isinstance(image, EncodedImage) else reader.prepare(image)
        except ImageError as error:
            return error

    waiting: deque[Future[_Ready]] = deque()
    with _Threads(default_threads(), "xattn-prepare") as pool:
        for image in images:
            waiting.append(pool.submit(prepare, image))
            if len(waiting) >= 3 * batch:
                yield [pool.result(waiting.popleft()) for _ in range(batch)]
        while waiting:
            yield [pool.result(waiting.popleft()) for _ in range(min(batch, len(waiting)))]


def compute_many(compute: Callable[[_Part], _Result], parts: Iterable[_Part], at_once: int) -> Iterator[_Result]:
    """What `compute` returns for the parts, in order, `at_once` of them computed at the same time; one more waits.

    The caller may use a result meanwhile. What `compute` raises is raised in its part's place.
    """
    waiting: deque[Future[_Result]] = deque()
    with _Threads(at_once, "xattn-compute") as pool:
        for part in parts:
            waiting.append(pool.submit(compute, part))
            if len(waiting) > at_once:
                yield pool.result(waiting.popleft())
        while waiting:
            yield pool.result(waiting.popleft())


class _Threads:
    """Threads of the process that began them; a forked one has none of them, and can wait for nothing that they do."""

    def __init__(self, count: int, name: str) -> None:
        self._pool, self._process = ThreadPoolExecutor(count, thread_name_prefix=name), os.getpid()

    def submit(self, compute: Callable[[_Part], _Result], part: _Part) -> Future[_Result]:
        self._check()
        return self._pool.submit(compute, part)

    def result(self, future: Future[_Result]) -> _Result:
        self._check()
        return future.result()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        if os.getpid() == self._process:
            self._pool.shutdown(wait=True, cancel_futures=True)

    def _check(self) -> None:
        if os.getpid() != self._process:
            raise UserError(
                "many images: expected the process that began with them, found one that was forked since then; "
                "make the call again in this process"
            )
