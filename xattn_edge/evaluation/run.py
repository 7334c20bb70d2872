"""`evaluate`: how good a bundle is at its task, measured with the runtime alone. Needs no torch."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from xattn_edge.evaluation.metrics import caption_metrics
from xattn_runtime.bundle.task_table import TASKS
from xattn_runtime.errors import DataError, QuestionError, UserError
from xattn_runtime.loader import load
from xattn_runtime.progress import Progress, silent
from xattn_runtime.tasks import CaptionTask, RetrievalTask, SentimentTask, Task, TaskInput
from xattn_runtime.tasks.sentiment import Utterance

if TYPE_CHECKING:
    from xattn_edge.evaluation.retrieval import Rerank

__all__ = ["EvaluationReport", "evaluate"]

_Part = TypeVar("_Part")

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
    progress: Progress = silent,
) -> EvaluationReport:
    """Measure a bundle on a split of a data set.

    Args:
        data: `easy-vqa` (metric: accuracy), `emoji` (exact match of captions, or recall at 1 of the held-out concepts
            by Noto) or `sentiment` (accuracy on films, from their text).
        split: `test`, or one of its parts.
        limit: evaluate only the first so many examples of each part.
        progress: called with what is done and the share of the whole, 0 to 1.

    Raises:
        UserError: the bundle's task does not fit the data, or `limit` is not positive.
        DataError, BundleError, ProviderError, DependencyError: see `xattn_runtime.errors`.
    """
    if limit is not None and limit < 1:
        raise UserError(f"expected a limit of at least 1, found {limit}")
    if data not in _MEASURES:
        raise DataError(f"unknown data set {data!r}; expected one of {', '.join(_MEASURES)}")
    task = load(bundle, provider=provider, threads=threads)
    if data not in task.spec.data_sets:
        tasks = " and ".join(name for name, spec in TASKS.items() if data in spec.data_sets)
        raise UserError(
            f"{bundle}: a bundle for {task.bundle.manifest.task} cannot be evaluated on {data}, which is for {tasks}"
        )
    metric = task.spec.metric
    measure = _MEASURES[data][metric]
    per_split = measure.scores(task, split, limit, progress)
    # Parts that are answers to different questions have no mean: there the first one stands for the bundle.
    counted = dict([next(iter(per_split.items()))]) if measure.first_part_counts else per_split
    total = int(sum(scores["n"] for scores in counted.values()))
    means = _weighted_means(counted, total)
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


def _evaluate_retrieval(
    task: RetrievalTask, split: str, limit: int | None, progress: Progress
) -> dict[str, dict[str, float]]:
    from xattn_edge.data.emoji_captions import EmojiCaptions
    from xattn_edge.evaluation.retrieval import retrieval_scores

    scores = retrieval_scores(
        EmojiCaptions(),
        lambda images: task.embed_images(list(images)),
        lambda texts: np.stack([_embedding(task, text) for text in texts]),
        _reranker(task) if task.reranks else None,
        limit,
        progress,
    )
    return _of_split(scores, split)


def _reranker(task: RetrievalTask) -> Rerank:
    def rerank(text: str, images: NDArray[np.uint8], cosines: NDArray[np.float32]) -> NDArray[np.float32]:
        try:
            return task.rerank(text, list(images), cosines.tolist())
        except QuestionError:
            return cosines

    return rerank


def _embedding(task: RetrievalTask, text: str) -> NDArray[np.float32]:
    """Of one text; zeros, near to nothing, of one that the model cannot read."""
    try:
        embedding: NDArray[np.float32] = task.embed_texts([text])[0]
    except QuestionError:
        embedding = np.zeros(task.width, dtype=np.float32)
    return embedding


def _evaluate_sentiment(
    task: SentimentTask, split: str, limit: int | None, progress: Progress
) -> dict[str, dict[str, float]]:
    from xattn_edge.data.rated_sentences import RatedSentences
    from xattn_edge.evaluation.sentiment import PARTS, label_scores, part_sentences

    data, scores = RatedSentences(), {}
    parts = _of_split({part.name: part for part in PARTS}, split)
    for number, part in enumerate(parts.values()):
        progress(f"reading {part.name}", number / len(parts))
        rows = part_sentences(data, part)[:limit]
        labels = [
            _label(
                task,
                Utterance(
                    row.text if "text" in part.modalities else None,
                    frames=list(data.frames(row)) if "frames" in part.modalities else None,
                    log_mel=data.speech(row) if "speech" in part.modalities else None,
                ),
            )
            for row in rows
        ]
        scores[part.name] = label_scores(labels, [row.label for row in rows])
    return scores


def _label(task: SentimentTask, utterance: Utterance) -> str:
    """Of one utterance; none, which is wrong, of one whose text the model cannot read."""
    try:
        return task.rate_utterance(utterance).label
    except QuestionError:
        return ""


def _of_split(parts: dict[str, _Part], split: str) -> dict[str, _Part]:
    """All parts, or those whose names begin with `split`."""
    if split == _ALL_SPLITS:
        return parts
    chosen = {name: part for name, part in parts.items() if split and name.startswith(split)}
    if not chosen:
        raise DataError(f"unknown split {split!r}; expected {_ALL_SPLITS} or one of {', '.join(parts)}")
    return chosen


def _weighted_means(per_split: dict[str, dict[str, float]], total: int) -> dict[str, float]:
    """Means over the parts of a split, each weighted by its size."""
    names = [name for name in next(iter(per_split.values())) if name != "n"]
    return {name: sum(scores[name] * scores["n"] for scores in per_split.values()) / total for name in names}


def _evaluate_answers(task: Task, split: str, limit: int | None, progress: Progress) -> dict[str, dict[str, float]]:
    from xattn_edge.data.easy_vqa import EasyVqa

    samples = EasyVqa().samples(split)[:limit]
    right = 0
    for start in range(0, len(samples), _QUESTIONS_PER_BATCH):
        batch = samples[start : start + _QUESTIONS_PER_BATCH]
        answers = task.answer_many([TaskInput(sample.image, sample.question) for sample in batch])
        right += sum(answer.text == sample.answer for answer, sample in zip(answers, batch, strict=True))
        progress("answering", (start + len(batch)) / len(samples))
    return {split: {"n": len(samples), "accuracy": 100 * right / len(samples)}}


def _evaluate_captions(
    task: CaptionTask, split: str, limit: int | None, progress: Progress
) -> dict[str, dict[str, float]]:
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
            pixels = [sample.pixels for sample in batch]
            captions += [caption.text for caption in task.caption_each(pixels, batch=_IMAGES_PER_BATCH, errors="raise")]
            references += [sample.caption for sample in batch]
            done += len(batch)
            progress(f"captioning {part}", done / sum(sizes.values()))
        scores[part] = {"n": len(references), **caption_metrics(captions, references)}
    return scores


@dataclass(frozen=True)
class _Measure:
    """How a metric is measured on a data set.

    scores: of a task whose metric it is, a split, the most examples of each part, and what is told of the progress: the
    scores of every part, with their number as `n`. first_part_counts: whether the first part alone stands for all.
    """

    scores: Callable[[Any, str, int | None, Progress], dict[str, dict[str, float]]]
    first_part_counts: bool = False


# Data set → metric → how it is measured.
_MEASURES: Mapping[str, Mapping[str, _Measure]] = {
    "easy-vqa": {"accuracy": _Measure(_evaluate_answers)},
    "emoji": {
        "exact_match": _Measure(_evaluate_captions),
        "recall_at_1": _Measure(_evaluate_retrieval, first_part_counts=True),
    },
    "sentiment": {"accuracy": _Measure(_evaluate_sentiment, first_part_counts=True)},
}
