"""`evaluate`: how good a bundle is at its task, measured with the runtime alone. Needs no torch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

from xattn_edge.evaluation.metrics import caption_metrics
from xattn_runtime.errors import DataError, UserError
from xattn_runtime.tasks import CaptionTask, VqaTask, load

__all__ = ["EvaluationReport", "evaluate"]

Progress = Callable[[str, float], None]

_IMAGES_PER_BATCH = 32
_QUESTIONS_PER_BATCH = 512
_ALL_SPLITS = "test"


@dataclass(frozen=True)
class EvaluationReport:
    """One figure, what it is made of, and what it was measured on; percentages unless the metric says otherwise."""

    metric: str
    value: float
    n: int
    bundle: str
    data: str
    split: str
    provider: str
    per_metric: dict[str, float] = field(default_factory=dict)
    per_split: dict[str, dict[str, float]] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """JSON form; `per_split` only where the split has parts."""
        values = {
            "metric": self.metric,
            "value": self.value,
            "n": self.n,
            "per_metric": self.per_metric,
            "bundle": self.bundle,
            "data": self.data,
            "split": self.split,
            "provider": self.provider,
        }
        return values | {"per_split": self.per_split} if self.per_split else values


def evaluate(
    bundle: Path,
    data: str,
    split: str = _ALL_SPLITS,
    *,
    provider: str = "cpu",
    threads: int | None = None,
    limit: int | None = None,
    progress: Progress | None = None,
) -> EvaluationReport:
    """Measure a bundle on a split of a data set.

    Args:
        data: `easy-vqa` (metric: accuracy) or `emoji` (metric: exact match of captions).
        split: `test`, or for `emoji` one of the parts of its test split.
        limit: evaluate only the first so many examples of each part.
        progress: called with what is done and the share of the whole, 0 to 1.

    Raises:
        UserError: the bundle's task does not fit the data, or `limit` is not positive.
        DataError, BundleError, ProviderError, DependencyError: see `xattn_runtime.errors`.
    """
    if limit is not None and limit < 1:
        raise UserError(f"expected a limit of at least 1, found {limit}")
    tasks = {"easy-vqa": "vqa", "emoji": "caption"}
    if data not in tasks:
        raise DataError(f"unknown data set {data!r}; expected one of {', '.join(tasks)}")
    task = load(bundle, provider=provider, threads=threads)
    tell = progress or (lambda _message, _share: None)
    if isinstance(task, VqaTask) and tasks[data] == "vqa":
        metric, per_split = "accuracy", _evaluate_vqa(task, split, limit, tell)
    elif isinstance(task, CaptionTask) and tasks[data] == "caption":
        metric, per_split = "exact_match", _evaluate_captions(task, split, limit, tell)
    else:
        found = task.bundle.manifest.task
        raise UserError(f"{bundle}: a bundle for {found} cannot be evaluated on {data}, which is for {tasks[data]}")
    total = int(sum(scores["n"] for scores in per_split.values()))
    means = _weighted_means(per_split, total)
    return EvaluationReport(
        metric=metric,
        value=means[metric],
        n=total,
        bundle=str(bundle),
        data=data,
        split=split,
        provider=provider,
        per_metric=means,
        per_split=per_split if len(per_split) > 1 else {},
    )


def _weighted_means(per_split: dict[str, dict[str, float]], total: int) -> dict[str, float]:
    """Means over the parts of a split, each weighted by its size."""
    names = [name for name in next(iter(per_split.values())) if name != "n"]
    return {name: sum(scores[name] * scores["n"] for scores in per_split.values()) / total for name in names}


def _evaluate_vqa(task: VqaTask, split: str, limit: int | None, tell: Progress) -> dict[str, dict[str, float]]:
    from xattn_edge.data.easy_vqa import EasyVqa

    samples = EasyVqa().samples(split)[:limit]
    right = 0
    for start in range(0, len(samples), _QUESTIONS_PER_BATCH):
        batch = samples[start : start + _QUESTIONS_PER_BATCH]
        answers = task.ask_batch([sample.image for sample in batch], [sample.question for sample in batch])
        right += sum(answer.answer == sample.answer for answer, sample in zip(answers, batch, strict=True))
        tell("answering", (start + len(batch)) / len(samples))
    return {split: {"n": len(samples), "accuracy": 100 * right / len(samples)}}


def _evaluate_captions(task: CaptionTask, split: str, limit: int | None, tell: Progress) -> dict[str, dict[str, float]]:
    from xattn_edge.data.emoji_captions import SPLITS, EmojiCaptions

    data = EmojiCaptions()
    parts = list(SPLITS) if split == _ALL_SPLITS else [split]
    sizes = {part: min(data.split_size(part), limit or data.split_size(part)) for part in parts}
    scores, done = {}, 0
    for part in parts:
        samples = islice(data.test_samples(part), limit)
        captions: list[str] = []
        references: list[str] = []
        while batch := list(islice(samples, _IMAGES_PER_BATCH)):
            captions += [caption.text for caption in task.caption_batch([sample.pixels for sample in batch])]
            references += [sample.caption for sample in batch]
            done += len(batch)
            tell(f"captioning {part}", done / sum(sizes.values()))
        scores[part] = {"n": len(references), **caption_metrics(captions, references)}
    return scores
