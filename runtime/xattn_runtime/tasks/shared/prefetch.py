"""Many pictures: the next are opened and preprocessed in threads while the model is at work on the last.

It keeps them in order and their number within bounds; what the model does with them is the caller's affair.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING, TypeVar

from xattn_runtime.errors import ImageError
from xattn_runtime.execution.session import default_threads
from xattn_runtime.tasks.shared.image_encoder import ImageEncoder, PreparedImage

if TYPE_CHECKING:
    from xattn_runtime.preprocess.image import ImageInput

__all__ = ["computed_ahead", "prepared_ahead"]

_Part = TypeVar("_Part")
_Found = TypeVar("_Found")


def prepared_ahead(
    encoder: ImageEncoder, images: Iterable[ImageInput], batch: int
) -> Iterator[list[PreparedImage | ImageError]]:
    """The images in order, `batch` at a time, ready for `encoder`, or why one cannot be used.

    At most two batches are ahead, so that memory stays as it is however many images there are.
    """

    def prepare(image: ImageInput) -> PreparedImage | ImageError:
        try:
            return encoder.prepare(image)
        except ImageError as error:
            return error

    waiting: deque[Future[PreparedImage | ImageError]] = deque()
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


def computed_ahead(compute: Callable[[_Part], _Found], parts: Iterable[_Part], at_once: int) -> Iterator[_Found]:
    """What `compute` gives for the parts, in order, at work on `at_once` of them; one more waits.

    The caller has time for what it got meanwhile. What `compute` raises is raised in its part's place.
    """
    waiting: deque[Future[_Found]] = deque()
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
