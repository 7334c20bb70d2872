from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from xattn_runtime.bundle.folder import open_bundle
from xattn_runtime.errors import BundleError, QuestionError, UserError
from xattn_runtime.loader import load
from xattn_runtime.preprocess.steps import Resize
from xattn_runtime.tasks import VqaTask

LABELS = ["yes", "no", "red", "green", "two"]
QUESTIONS = {"what is the cat": [4, 5, 6, 9], "dog": [10], "Is the house red": [5, 6, 14, 7], "a zebra": [12, 1]}


@pytest.fixture
def task(vqa_bundle: Path) -> VqaTask:
    return load(vqa_bundle, threads=1, task="vqa")


def _probabilities(logits: np.ndarray) -> np.ndarray:
    weights = np.exp(logits - logits.max())
    return weights / weights.sum()


@pytest.mark.parametrize("question", QUESTIONS)
def test_an_answer_is_the_reference_models(
    task: VqaTask, noise: Callable[[int], Path], reference_cross: Any, model: Any, question: str
) -> None:
    expected = _probabilities(model.answer_logits(reference_cross(noise(3)), QUESTIONS[question]))
    answer = task.ask(noise(3), question)
    assert answer.answer == LABELS[int(expected.argmax())]
    assert answer.confidence == pytest.approx(expected.max(), abs=1e-5)
    assert [label for label, _ in answer.top] == [LABELS[i] for i in np.argsort(-expected)]
    assert [p for _, p in answer.top] == pytest.approx(np.sort(expected)[::-1], abs=1e-5)
    assert answer.unknown_words == (("zebra",) if "zebra" in question else ())


def test_top_k(task: VqaTask, noise: Callable[[int], Path]) -> None:
    assert len(task.ask(noise(0), "dog", top_k=2).top) == 2
    assert len(task.ask(noise(0), "dog", top_k=99).top) == 5
    with pytest.raises(UserError, match="top_k: expected at least 1, found 0"):
        task.ask(noise(0), "dog", top_k=0)


def test_encode_once_ask_many(task: VqaTask, noise: Callable[[int], Path]) -> None:
    encoded = task.encode(noise(0))
    for question in QUESTIONS:
        known, fresh = task.ask(encoded, question), task.ask(noise(0), question)
        assert known.top == fresh.top
        assert known.timing_ms.preprocess == known.timing_ms.encode == 0
        assert min(fresh.timing_ms.preprocess, fresh.timing_ms.encode, fresh.timing_ms.answer) > 0


def test_a_batch_gives_what_each_pair_gives_alone(
    task: VqaTask, noise: Callable[[int], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    paths = [noise(seed) for seed in range(5)]
    pairs = [(path, question) for question in QUESTIONS for path in paths] * 5
    alone = {pair: task.ask(*pair) for pair in pairs}
    encoded: list[object] = []
    encode_many = task._images.encode_many
    monkeypatch.setattr(task._images, "encode_many", lambda images: (encoded.extend(images), encode_many(images))[1])
    # Paths as strings and paths are the same image; an encoded one is not encoded again.
    images: list[Any] = [str(path) if i % 2 else path for i, (path, _) in enumerate(pairs)]
    images[7] = task.encode(pairs[7][0])
    encoded.clear()
    answers = task.ask_many(images, [question for _, question in pairs])
    assert len(pairs) > 64
    assert len(encoded) == 5
    for pair, answer in zip(pairs, answers, strict=True):
        assert answer.answer == alone[pair].answer
        assert answer.confidence == pytest.approx(alone[pair].confidence, abs=1e-5)
        assert answer.unknown_words == alone[pair].unknown_words
    assert task.ask_many([], []) == []


def test_pairs_that_are_none(task: VqaTask, noise: Callable[[int], Path]) -> None:
    with pytest.raises(UserError, match="questions: expected one for each of 1 images, found 2"):
        task.ask_many([noise(0)], ["dog", "cat"])
    with pytest.raises(QuestionError, match="none of the words"):
        task.ask(noise(0), "zebra")


def test_a_bundle_of_another_task(caption_bundle: Path) -> None:
    with pytest.raises(BundleError, match="expected a bundle for vqa, found one for caption"):
        VqaTask(open_bundle(caption_bundle))


def test_labels_that_do_not_fit(vqa_copy: Path, rewrite: Any) -> None:
    rewrite(vqa_copy, replace(open_bundle(vqa_copy).manifest, labels=("yes", "no")))
    with pytest.raises(BundleError, match="output logits: expected 2 answers, one a label, found 5"):
        load(vqa_copy)


def test_preprocessing_that_does_not_fit(vqa_copy: Path, rewrite: Any) -> None:
    manifest = open_bundle(vqa_copy).manifest
    steps = tuple(replace(s, width_px=32) if isinstance(s, Resize) else s for s in manifest.image_steps)
    rewrite(vqa_copy, replace(manifest, image_steps=steps))
    with pytest.raises(BundleError, match=r"pixel_values: expected \['batch', 3, 16, 32\], as the preprocessing gives"):
        load(vqa_copy)
