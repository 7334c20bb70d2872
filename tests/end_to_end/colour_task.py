"""A fifth task, to show what a task takes: this file, and the row that `ROW` is. It tells which colour an image has.

An image encoder gives a score for each of `COLOURS`; the largest is the answer.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import numpy as np

from xattn_runtime.bundle.folder import Bundle
from xattn_runtime.bundle.manifest import GoldenCase
from xattn_runtime.bundle.task_table import TaskSpec
from xattn_runtime.execution.session import SessionSettings
from xattn_runtime.execution.settings import session_settings
from xattn_runtime.tasks.protocol import CaseResult, Task, TaskInput, TaskResult, Times
from xattn_runtime.tasks.shared.closing import Closable
from xattn_runtime.tasks.shared.image_encoder import ImageReader, milliseconds_since

if TYPE_CHECKING:
    from xattn_runtime.preprocess.image import ImageInput

COLOURS = ("red", "green", "blue")

ROW = TaskSpec(
    runs="tests.end_to_end.colour_task:ColourTask",
    roles=(("image_encoder",),),
    metric="accuracy",
    data_sets=("easy-vqa",),
)


class ColourTask(Closable, Task):
    """A bundle that tells the colour of an image, loaded."""

    def __init__(self, bundle: Bundle, provider: str | SessionSettings = "cpu", threads: int | None = None) -> None:
        self.bundle = bundle
        self.settings = session_settings(provider, threads, bundle)
        self._images = ImageReader(bundle, self.settings)

    def scores(self, image: ImageInput) -> np.ndarray:
        """float32 `[colours]`."""
        embeddings: np.ndarray = self._images.encode(image).tensors["image_embeddings"]
        return embeddings[0]

    def answer(self, task_input: TaskInput) -> TaskResult:
        scores = self.scores(task_input.image)
        colour = COLOURS[int(scores.argmax())]
        return TaskResult(colour, data={"colour": colour, "scores": scores.tolist()})

    def run_case(self, case: GoldenCase) -> CaseResult:
        scores = self.scores(self.bundle.file(case.image))
        return CaseResult({"image_embeddings": scores}, None if case.text is None else COLOURS[int(scores.argmax())])

    def timed(self, image: ImageInput, case: GoldenCase) -> Times:
        began = time.perf_counter()
        encoded = self._images.encode(image)
        total_ms = milliseconds_since(began)
        return {"preprocess": [encoded.preprocess_ms], "encode": [encoded.encode_ms], "total": [total_ms]}
