"""What each sample scores, so that losses can be weighed against chance: the split of a search for a budget."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from xattn_edge.evaluation.metrics import caption_scores
from xattn_edge.evaluation.samples import Sample, Samples
from xattn_export.quantize.budget.measuring import Scores
from xattn_runtime.bundle.folder import Bundle
from xattn_runtime.errors import UserError
from xattn_runtime.loader import load
from xattn_runtime.tasks import CaptionTask, RetrievalTask, VqaTask

__all__ = ["TaskSplit"]


@dataclass
class TaskSplit:
    """Samples of a task and what a bundle scores on them.

    Of captions with references the score is CIDEr, of answers with references 1 where they are right. Without
    references it is 1 where a bundle says what `plain` says.
    """

    samples: Samples
    plain: Bundle
    _said: list[str] = field(default_factory=list)

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
        replies = _answers(bundle, items)
        references = [sample.reference for sample in items]
        if None in references:
            self._said = self._said or _answers(self.plain, items)
            return Scores("agreement", [float(one == other) for one, other in zip(replies, self._said, strict=True)])
        known = [str(reference) for reference in references]
        if bundle.manifest.task == "caption":
            return Scores("cider", caption_scores(replies, known))
        return Scores("accuracy", [float(one == other) for one, other in zip(replies, known, strict=True)])


def _answers(bundle: Bundle, samples: Sequence[Sample]) -> list[str]:
    task = load(bundle)
    if isinstance(task, CaptionTask):
        return [task.caption(sample.image, sample.text).text for sample in samples]
    if isinstance(task, VqaTask):
        answers = task.ask_batch([sample.image for sample in samples], [sample.text or "" for sample in samples])
        return [answer.answer for answer in answers]
    assert isinstance(task, RetrievalTask)
    raise UserError(f"{bundle.path}: expected a bundle that captions or answers, found one for retrieval")
