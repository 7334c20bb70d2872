"""Passes of a task over its golden inputs, or over other images, with the time of every stage.

It calls the task for that, and knows neither tasks nor graphs.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from xattn_runtime.errors import UserError
from xattn_runtime.tasks import Task, Times

if TYPE_CHECKING:
    from xattn_runtime.preprocess.image import ImageInput

__all__ = ["Passes"]


class Passes:
    """Passes over the inputs in turn: all that a user waits for, and for generated text the tokens once more, singly.

    The stages, in milliseconds, are those of `Task.timed`; prefill and step are the tokens as when they are streamed:
    the first, and each later one. With a batch, each stage is an image's share, and prefill and step are absent.
    """

    def __init__(self, task: Task, images: Sequence[ImageInput] = (), batch: int = 1) -> None:
        """UserError for a batch where the task takes one thing at a time."""
        if batch > 1 and not task.spec.takes_batches:
            raise UserError(
                f"--batch: expected 1 for {task.bundle.manifest.task}, found {batch}; only captions go together"
            )
        self.task, self.batch, self.done = task, batch, 0
        self._cases = task.bundle.manifest.golden.cases
        self._images: list[ImageInput] = list(images) or [task.bundle.file(case.image) for case in self._cases]

    @property
    def next_image(self) -> int:
        """The number of the input that the next pass begins with: passes with equal numbers do the same work."""
        return self.done * self.batch % max(len(self._images), len(self._cases))

    def run(self) -> Times:
        """The next pass."""
        number, self.done = self.done, self.done + 1
        count = len(self._images)
        if self.batch > 1:
            return self.task.timed_batch(
                [self._images[(number * self.batch + row) % count] for row in range(self.batch)]
            )
        return self.task.timed(self._images[number % count], self._cases[number % len(self._cases)])
