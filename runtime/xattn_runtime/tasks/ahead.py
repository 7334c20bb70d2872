"""Many pictures, of which the next are opened and preprocessed in threads while the model is at work on the last."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING

from xattn_runtime.errors import ImageError
from xattn_runtime.session import default_threads
from xattn_runtime.tasks.encoding import ImageEncoder, PreparedImage

if TYPE_CHECKING:
    from xattn_runtime.preprocess.image import ImageInput

__all__ = ["prepared_ahead"]


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
