"""How often answers are right that a bundle is so and so sure of, and the temperature that makes the two agree.

Logits are taken from the runtime; nothing here imports torch. Guo et al., 2017, https://arxiv.org/abs/1706.04599
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from xattn_runtime.bundle.calibration import ConfidenceCalibration
from xattn_runtime.bundle.folder import open_bundle
from xattn_runtime.bundle.task_table import TASKS
from xattn_runtime.errors import DataError, UserError
from xattn_runtime.generate.processors import log_softmax
from xattn_runtime.loader import load
from xattn_runtime.progress import Progress, silent
from xattn_runtime.tasks import VqaTask

__all__ = ["calibrate", "expected_calibration_error", "fit_temperature"]


_BINS = 15
_LOWEST, _HIGHEST = 0.05, 20.0
_ROUNDS = 60
_QUESTIONS_PER_BATCH = 512
_GOLDEN_RATIO = (5**0.5 - 1) / 2


def expected_calibration_error(confidences: NDArray[np.floating], right: NDArray[np.bool_]) -> float:
    """Mean distance between how sure and how often right answers are, over 15 bins of equal width, 0 to 1."""
    bins = np.clip(np.ceil(confidences * _BINS).astype(np.int64) - 1, 0, _BINS - 1)
    gaps = [abs(float(confidences[bins == place].sum()) - float(right[bins == place].sum())) for place in range(_BINS)]
    return sum(gaps) / len(confidences)


def fit_temperature(logits: NDArray[np.float32], labels: NDArray[np.int64]) -> float:
    """What to divide `logits` `[samples, answers]` by, 0.05 to 20, so that the best answer's confidence fits `labels`.

    Minimises the cross-entropy of right and wrong, by golden-section search. Right counts as (r + 1) / (r + 2) of `r`
    right answers, and wrong as 1 / (w + 2) of `w`: so that where none is wrong the confidence does not become certainty
    (Platt, Probabilistic Outputs for Support Vector Machines, 1999).
    """
    right = logits.argmax(axis=1) == labels
    count = int(right.sum())
    targets = np.where(right, (count + 1) / (count + 2), 1 / (len(right) - count + 2))

    def loss(inverse: float) -> float:
        log_probs = log_softmax(np.asarray(logits * np.float32(inverse), dtype=np.float32)).astype(np.float64)
        best = log_probs.max(axis=1)
        others = np.log(np.maximum(np.sort(np.exp(log_probs), axis=1)[:, :-1].sum(axis=1), 1e-30))
        return -float((targets * best + (1 - targets) * others).mean())

    low, high = 1 / _HIGHEST, 1 / _LOWEST
    for _ in range(_ROUNDS):
        one, other = high - _GOLDEN_RATIO * (high - low), low + _GOLDEN_RATIO * (high - low)
        low, high = (low, other) if loss(one) <= loss(other) else (one, high)
    return 2 / (low + high)


def calibrate(
    bundle: Path,
    data: str,
    *,
    provider: str = "cpu",
    threads: int | None = None,
    limit: int | None = None,
    progress: Progress = silent,
) -> ConfidenceCalibration:
    """Fit a temperature on every other image of the test split of `data`, and try it on the images between.

    limit: take only so many questions.
    Raises DataError for another data set than easy-vqa, UserError for a bundle that does not choose among labels, or of
    which the two halves would have no question.
    """
    if data != "easy-vqa":
        raise DataError(f"unknown data set {data!r}; expected easy-vqa")
    opened = open_bundle(bundle)
    opened = replace(opened, manifest=replace(opened.manifest, calibration=None))
    if opened.manifest.labels is None or data not in TASKS[opened.manifest.task].data_sets:
        raise UserError(f"{bundle}: expected a bundle that chooses its answers among labels, found none")
    task = load(opened, provider, threads, task="vqa")
    places, logits, labels = _logits(task, data, opened.manifest.labels, limit, progress)
    fits = places % 2 == 0
    if not fits.any() or fits.all():
        raise UserError(f"limit: expected questions about 2 images or more, found {len(places)} about one")
    temperature = fit_temperature(logits[fits], labels[fits])
    errors = [_error(logits[~fits], labels[~fits], divisor) for divisor in (1.0, temperature)]
    return ConfidenceCalibration(temperature, f"{data} test", int(fits.sum()), int((~fits).sum()), errors[0], errors[1])


def _logits(
    task: VqaTask, data: str, known: Sequence[str], limit: int | None, progress: Progress
) -> tuple[NDArray[np.int64], NDArray[np.float32], NDArray[np.int64]]:
    """Of every question: the number of its image, its logits `[questions, answers]`, and the right label."""
    from xattn_edge.data.easy_vqa import EasyVqa

    samples = EasyVqa().samples("test")[:limit]
    images = {image: place for place, image in enumerate(dict.fromkeys(sample.image for sample in samples))}
    rows = []
    for start in range(0, len(samples), _QUESTIONS_PER_BATCH):
        batch = samples[start : start + _QUESTIONS_PER_BATCH]
        answers = task.ask_many(
            [sample.image for sample in batch], [sample.question for sample in batch], top_k=len(known)
        )
        rows += [[dict(answer.top)[label] for label in known] for answer in answers]
        progress("answering", (start + len(batch)) / len(samples))
    # The logarithms of probabilities are logits but for a number that is the same for all answers.
    logits = np.log(np.maximum(np.array(rows, dtype=np.float32), np.finfo(np.float32).tiny))
    labels = [known.index(sample.answer) for sample in samples]
    return np.array([images[sample.image] for sample in samples]), logits, np.array(labels)


def _error(logits: NDArray[np.float32], labels: NDArray[np.int64], temperature: float) -> float:
    probabilities = np.exp(log_softmax(logits / np.float32(temperature)))
    return expected_calibration_error(probabilities.max(axis=1), probabilities.argmax(axis=1) == labels)
