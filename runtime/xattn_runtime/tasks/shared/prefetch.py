"""Many images: the next ones are opened and preprocessed in threads while the model works on the last.

It keeps answers in order, and the images that wait within bounds; what the model does with them is the caller's affair.
"""

from __future__ import annotations

import os
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Generic, Self, TypeVar

from xattn_runtime.errors import UserError
from xattn_runtime.execution.session import default_threads

__all__ = ["ImageWork", "compute_each"]

_Image = TypeVar("_Image")
_Taken = TypeVar("_Taken")
_Ready = TypeVar("_Ready")
_Result = TypeVar("_Result")
_Part = TypeVar("_Part")

# A source that takes longer for an image may have the model wait for it.
_NOTICEABLE_S = 0.05
# Waiting for an answer before the next image is asked for takes a third more time at most.
_SLOWER_THAN_MODEL = 2.0


@dataclass(frozen=True)
class ImageWork(Generic[_Image, _Taken, _Ready, _Result]):
    """What is done with an image.

    take: called where and when the source gives it; what becomes of it afterwards does not matter. prepare: in a
    thread. compute: of several that are prepared, in another thread; as many results.
    """

    take: Callable[[_Image], _Taken]
    prepare: Callable[[_Taken], _Ready]
    compute: Callable[[Sequence[_Ready]], Sequence[_Result]]


@dataclass
class _Computing(Generic[_Result]):
    """A part that the model works on, or will next."""

    size: int
    results: Future[Sequence[_Result]]


def compute_each(
    images: Iterable[_Image], work: ImageWork[_Image, _Taken, _Ready, _Result], batch: int, at_once: int
) -> Iterator[_Result]:
    """The results in order, `batch` computed together and `at_once` such parts at the same time.

    A result that is ready is yielded before the next image is asked for. A list is cut into whole batches; of anything
    else the model takes what there is when it would wait for the source otherwise, and where the source is slower than
    the model, each image is answered before the next is asked for. At most two batches wait besides those at work.

    What `take`, `prepare` and `compute` raise, and what the source does, is raised in its place.
    """
    line = _Line(work, batch, at_once, is_list=isinstance(images, list | tuple))
    with line:
        failure: Exception | None = None
        source = iter(images)
        while True:
            began = time.perf_counter()
            try:
                image = next(source)
            except StopIteration:
                break
            except Exception as error:  # after the results of the images before it
                failure = error
                break
            line.add(image, time.perf_counter() - began)
            while line.may_give:
                yield from line.next_results()
        line.compute_rest()
        while line.computing:
            yield from line.next_results()
        if failure is not None:
            raise failure


@dataclass
class _Line(Generic[_Image, _Taken, _Ready, _Result]):
    """The images between the source and their results.

    computing: parts in order. preparing: images of the next part. is_source_slow: slower than the model, when it was
    last asked. computed_s: what the last part took.
    """

    work: ImageWork[_Image, _Taken, _Ready, _Result]
    batch: int
    at_once: int
    is_list: bool
    computing: deque[_Computing[_Result]] = field(default_factory=deque)
    preparing: list[Future[_Ready]] = field(default_factory=list)
    is_source_slow: bool = False
    computed_s: float = 0.0

    def __enter__(self) -> Self:
        self._preparers = _Threads(default_threads(), "xattn-prepare")
        self._computers = _Threads(self.at_once, "xattn-compute")
        return self

    def __exit__(self, *error: object) -> None:
        self._computers.close()
        self._preparers.close()

    def add(self, image: _Image, waited_s: float) -> None:
        """An image, and how long the source took for it."""
        self.preparing.append(self._preparers.submit(self.work.prepare, self.work.take(image)))
        is_noticeable = not self.is_list and waited_s > _NOTICEABLE_S
        self.is_source_slow = is_noticeable and waited_s > _SLOWER_THAN_MODEL * self.computed_s
        is_model_idle = len(self.computing) < self.at_once
        if len(self.preparing) == self.batch or self.is_source_slow or (is_noticeable and is_model_idle):
            self.compute_rest()

    def compute_rest(self) -> None:
        """Compute what is prepared, or will be, as one part."""
        if self.preparing:
            part, self.preparing = self.preparing, []
            self.computing.append(_Computing(len(part), self._computers.submit(self._compute, part)))

    @property
    def may_give(self) -> bool:
        """Whether the next results are to be given before another image is asked for."""
        if not self.computing:
            return False
        waiting = sum(part.size for part in self.computing) + len(self.preparing)
        is_full = waiting >= (self.at_once + 2) * self.batch
        return is_full or self.is_source_slow or self.computing[0].results.done()

    def next_results(self) -> Sequence[_Result]:
        """Those of the first part, waited for."""
        return self._computers.result(self.computing.popleft().results)

    def _compute(self, part: Sequence[Future[_Ready]]) -> Sequence[_Result]:
        began = time.perf_counter()
        results = self.work.compute([future.result() for future in part])
        self.computed_s = time.perf_counter() - began
        return results


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

    def close(self) -> None:
        """Wait for what is running, and drop the rest."""
        if os.getpid() == self._process:
            self._pool.shutdown(wait=True, cancel_futures=True)

    def _check(self) -> None:
        if os.getpid() != self._process:
            raise UserError(
                "many images: expected the process that began with them, found one that was forked since then; "
                "make the call again in this process"
            )
