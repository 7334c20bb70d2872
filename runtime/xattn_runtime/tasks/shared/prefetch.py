"""Many images: the next ones are opened and preprocessed in threads while the model works on the last.

It keeps them in order and their number within bounds; what the model does with them is the caller's affair.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING, TypeVar

from xattn_runtime.errors import ImageError
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
    pool = ThreadPoolExecutor(default_threads(), thread_name_prefix="xattn-prepare")
    try:
        for image in images:
            waiting.append(pool.submit(prepare, image))
            if len(waiting) >= 3 * batch:
                yield [waiting.popleft().result() for _ in range(batch)]
        while waiting:
            yield [waiting.popleft().result() for _ in range(min(batch, len(waiting)))]
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def compute_many(compute: Callable[[_Part], _Result], parts: Iterable[_Part], at_once: int) -> Iterator[_Result]:
    """What `compute` returns for the parts, in order, `at_once` of them computed at the same time; one more waits.

    The caller may use a result meanwhile. What `compute` raises is raised in its part's place.
    """
    waiting: deque[Future[_Result]] = deque()
    pool = ThreadPoolExecutor(at_once, thread_name_prefix="xattn-compute")
    try:
        for part in parts:
            waiting.append(pool.submit(compute, part))
            if len(waiting) > at_once:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
