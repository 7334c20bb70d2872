"""What each sample scores, so that losses can be weighed against chance: the split of a search for a budget."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from xattn_edge.evaluation.metrics import caption_scores
from xattn_edge.evaluation.samples import Sample, Samples
from xattn_export.quantize.budget.measuring import Scores
from xattn_runtime.bundle.folder import Bundle
from xattn_runtime.bundle.task_table import TASKS
from xattn_runtime.errors import UserError
from xattn_runtime.loader import load
from xattn_runtime.tasks import TaskInput

__all__ = ["TaskSplit"]


@dataclass
class TaskSplit:
    """Samples of a task and what a bundle scores on them.

    Of captions with references the score is CIDEr, of answers with references 1 where they are right. Without
    references it is 1 where a bundle says what `plain` says.
    """

    samples: Samples
    plain: Bundle
    _plain_answers: list[str] = field(default_factory=list)

    @property
    def name(self) -> str:
        """The samples' name."""
        return self.samples.name

    @property
    def examples(self) -> Samples:
        """The samples."""
        return self.samples

    def scores(self, bundle: Bundle) -> Scores:
        """What `bundle` scores on each sample; UserError for a bundle that answers nothing."""
        items = self.samples.items
        answers = _answers(bundle, items)
        references = [sample.reference for sample in items]
        if None in references:
            self._plain_answers = self._plain_answers or _answers(self.plain, items)
            return Scores(
                "agreement", [float(one == other) for one, other in zip(answers, self._plain_answers, strict=True)]
            )
        known = [str(reference) for reference in references]
        metric, score = _SAMPLE_SCORES.get(TASKS[bundle.manifest.task].metric, _ACCURACY)
        return Scores(metric, score(answers, known))


def _answers(bundle: Bundle, samples: Sequence[Sample]) -> list[str]:
    if not TASKS[bundle.manifest.task].answers:
        raise UserError(
            f"{bundle.path}: expected a bundle that captions or answers, found one for {bundle.manifest.task}"
        )
    results = load(bundle).answer_many([TaskInput(sample.image, sample.text) for sample in samples])
    return [result.text for result in results]


def _equal(answers: Sequence[str], references: Sequence[str]) -> list[float]:
    return [float(one == other) for one, other in zip(answers, references, strict=True)]


_ACCURACY = ("accuracy", _equal)
# A task's metric → what stands for it where every sample needs a score of its own.
_SAMPLE_SCORES: Mapping[str, tuple[str, Callable[[Sequence[str], Sequence[str]], list[float]]]] = {
    "exact_match": ("cider", caption_scores)
}
