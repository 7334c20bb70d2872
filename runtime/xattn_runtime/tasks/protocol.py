"""What every task can do, so that verifying, profiling, comparing, calibrating and evaluating know no task by name."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import TYPE_CHECKING, Any, Protocol, Self

import numpy as np
from numpy.typing import NDArray

from xattn_runtime.bundle.folder import Bundle
from xattn_runtime.bundle.manifest import GoldenCase
from xattn_runtime.bundle.task_table import TASKS, TaskSpec
from xattn_runtime.errors import UserError
from xattn_runtime.execution.session import SessionSettings

if TYPE_CHECKING:
    from xattn_runtime.preprocess.image import ImageInput

__all__ = ["CaseResult", "Task", "TaskInput", "TaskResult", "Times"]

Times = dict[str, list[float]]
"""Stage → milliseconds, one value or several; and `tokens`, how many were generated."""


@dataclass(frozen=True)
class TaskInput:
    """An image, and the question, prompt or query beside it; for sentiment, an .npz of speech and frames."""

    image: ImageInput
    text: str | None = None


@dataclass(frozen=True)
class TaskResult:
    """An answer as text, and as data.

    text: empty where the task only embeds. token_ids: those that were generated. top: the most probable answers of a
    task that chooses one. data: what the command line prints with `--json`, without the input.
    """

    text: str = ""
    token_ids: tuple[int, ...] = ()
    top: tuple[tuple[str, float], ...] = ()
    data: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class CaseResult:
    """What a golden case gives here: the tensors to compare, by their names, and the text where the case has one."""

    tensors: Mapping[str, NDArray[np.float32]]
    text: str | None = None


class Task(Protocol):
    """A bundle, loaded. Implementations derive from it; what only some tasks can do has a default."""

    bundle: Bundle
    settings: SessionSettings

    def __init__(self, bundle: Bundle, provider: str | SessionSettings = "cpu", threads: int | None = None) -> None:
        """Load the graphs of `bundle`; raises BundleError, ProviderError or DependencyError."""

    def __enter__(self) -> Self:
        """The task itself."""
        ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close it."""

    def close(self) -> None:
        """Release graphs and tokenizer; further calls raise UserError."""

    @property
    def spec(self) -> TaskSpec:
        """The task's row of the table."""
        return TASKS[self.bundle.manifest.task]

    def answer(self, task_input: TaskInput) -> TaskResult:
        """The answer to one input; raises ImageError and QuestionError."""
        ...

    def answer_many(self, inputs: Sequence[TaskInput]) -> list[TaskResult]:
        """The answers to several inputs, in order."""
        return [self.answer(each) for each in inputs]

    def run_case(self, case: GoldenCase) -> CaseResult:
        """A golden case of the bundle through the whole pipeline."""
        ...

    def timed(self, image: ImageInput, case: GoldenCase) -> Times:
        """One pass over `image` with the text of `case`, and the milliseconds of each stage; `total` is one of them."""
        ...

    def timed_batch(self, images: Sequence[ImageInput]) -> Times:
        """One pass over several images together; each stage is an image's share, `total` is that of all of them."""
        raise UserError(f"{self.bundle.path}: expected a task that takes several inputs at once")

    def token_logits(self, task_input: TaskInput, token_ids: Sequence[int]) -> NDArray[np.float32]:
        """Logits float32 `[len(token_ids) + 1, vocabulary]` along given tokens, for a task that generates them."""
        raise UserError(f"{self.bundle.path}: expected a task that generates tokens")
