"""One pass of a task over its golden inputs, or over given pictures, with the time of every stage.

It calls the tasks as anybody would and keeps the clock; it knows no graph.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict
from itertools import islice
from typing import TYPE_CHECKING

from xattn_runtime.errors import UserError
from xattn_runtime.tasks import AnyTask, CaptionTask, RetrievalTask, SentimentTask
from xattn_runtime.tasks.sentiment import read_sample
from xattn_runtime.tasks.shared.image_encoder import EncodedImage, milliseconds_since

if TYPE_CHECKING:
    from xattn_runtime.preprocess.image import ImageInput

__all__ = ["Passes", "Times"]

Times = dict[str, list[float]]


class Passes:
    """Passes over the inputs in turn: all that a user waits for, and a captioner's tokens once more, one by one.

    Stages, in milliseconds: preprocess, encode, then decode (the whole caption), answer, embed_text or what sentiment
    has; total. prefill and step are the tokens one by one, as when they are streamed: the first, and each later one.
    With a batch of several, preprocess, encode and decode are each picture's share, and prefill and step are absent.
    """

    def __init__(self, task: AnyTask, images: Sequence[ImageInput] = (), batch: int = 1) -> None:
        """UserError for a batch where the task takes one thing at a time."""
        if batch > 1 and not isinstance(task, CaptionTask):
            raise UserError(
                f"--batch: expected 1 for {task.bundle.manifest.task}, found {batch}; only captions go together"
            )
        self.task, self.batch, self.done = task, batch, 0
        cases = task.bundle.manifest.golden.cases
        self._pictures: list[ImageInput] = list(images) or [task.bundle.file(case.image) for case in cases]

    @property
    def next_picture(self) -> int:
        """Which of the inputs the next pass begins with: passes of the same take the same work."""
        return self.done * self.batch % max(len(self._pictures), len(self.task.bundle.manifest.golden.cases))

    def run(self) -> Times:
        """The next pass."""
        times: Times = {}
        index, self.done = self.done, self.done + 1
        if self.batch > 1:
            self._together(index, times)
            return times
        encoded = self._alone(self._pictures[index % len(self._pictures)], index, times)
        if isinstance(self.task, CaptionTask) and encoded is not None:
            self._steps(self.task, encoded, times)
        return times

    def _alone(self, picture: ImageInput, index: int, times: Times) -> EncodedImage | None:
        task = self.task
        cases = task.bundle.manifest.golden.cases
        case = cases[index % len(cases)]
        if isinstance(task, SentimentTask):
            timing = task.tell(read_sample(task.bundle.file(case.image), case.question)).timing_ms
            times.update({stage: [measured_ms] for stage, measured_ms in asdict(timing).items()})
            return None
        began = time.perf_counter()
        encoded = task.encode(picture)
        times["preprocess"], times["encode"] = [encoded.preprocess_ms], [encoded.encode_ms]
        if isinstance(task, CaptionTask):
            caption = task.caption(encoded)
            times["decode"] = [caption.timing_ms.decode]
        elif isinstance(task, RetrievalTask):
            text_began = time.perf_counter()
            task.embed_texts([case.query or ""])
            times["embed_text"] = [milliseconds_since(text_began)]
        else:
            times["answer"] = [task.ask(encoded, case.question or "").timing_ms.total]
        times["total"] = [milliseconds_since(began)]
        return encoded

    def _together(self, index: int, times: Times) -> None:
        if not isinstance(self.task, CaptionTask):
            return
        count = len(self._pictures)
        pictures = [self._pictures[(index * self.batch + row) % count] for row in range(self.batch)]
        began = time.perf_counter()
        captions = self.task.caption_batch(pictures)
        times["total"] = [milliseconds_since(began)]
        timing = captions[0].timing_ms
        times["preprocess"], times["encode"], times["decode"] = [timing.preprocess], [timing.encode], [timing.decode]
        # The end token is generated too.
        times["tokens"] = [1 + sum(len(caption.token_ids) for caption in captions) / self.batch]

    @staticmethod
    def _steps(task: CaptionTask, encoded: EncodedImage, times: Times) -> None:
        measured, began = [], time.perf_counter()
        for _ in task.steps(encoded):
            measured.append(milliseconds_since(began))
            began = time.perf_counter()
        times["prefill"], times["tokens"] = measured[:1], [float(len(measured))]
        if later := list(islice(measured, 1, None)):
            times["step"] = later
