"""Answers that are generated: chosen from a list by their likelihood, drawn, searched, and stopped."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from xattn_runtime.bundle.folder import open_bundle
from xattn_runtime.errors import UserError
from xattn_runtime.tasks import DecodingOptions, VqaTask

ANSWERS = {"cat": [9], "dog house": [10, 14], "green": [8], "what is on": [4, 5, 13]}
QUESTION, QUESTION_IDS, END = "the red", [6, 7], 3


@pytest.fixture
def task(caption_copy: Path, rewrite: Any) -> VqaTask:
    """The captioner as a model that is asked: its decoder goes on from the question."""
    manifest = open_bundle(caption_copy).manifest
    cases = tuple(replace(case, question=QUESTION) for case in manifest.golden.cases)
    rewrite(caption_copy, replace(manifest, task="vqa", golden=replace(manifest.golden, cases=cases)))
    return VqaTask(open_bundle(caption_copy), threads=1)


def _log_likelihood(model: Any, cross: dict[str, np.ndarray], ids: list[int]) -> float:
    """By the reference, which has no cache: of the ids after the question, and of the end."""
    logits = model.forced_logits(cross, [*QUESTION_IDS, *ids])[len(QUESTION_IDS) :].astype(np.float64)
    log_probs = logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True))
    return float(sum(log_probs[place, token_id] for place, token_id in enumerate([*ids, END])))


def test_a_list_is_ranked_by_likelihood(
    task: VqaTask, noise: Callable[[int], Path], reference_cross: Any, model: Any
) -> None:
    orders = set()
    for seed in range(8):
        expected = {text: _log_likelihood(model, reference_cross(noise(seed)), ids) for text, ids in ANSWERS.items()}
        total = math.log(sum(math.exp(value) for value in expected.values()))
        answer = task.ask(noise(seed), QUESTION, answers=list(ANSWERS))
        assert [text for text, _ in answer.top] == sorted(expected, key=lambda text: -expected[text])
        assert answer.answer == answer.top[0][0]
        for text, probability in answer.top:
            assert probability == pytest.approx(math.exp(expected[text] - total), abs=1e-4)
        assert list(answer.token_ids) == ANSWERS[answer.answer]
        orders.add(tuple(text for text, _ in answer.top))
    assert len(orders) > 1
    together = task.ask_many([noise(0), noise(1)], [QUESTION, QUESTION], answers=list(ANSWERS), top_k=2)
    assert [len(answer.top) for answer in together] == [2, 2]


def test_options_of_decoding(task: VqaTask, noise: Callable[[int], Path]) -> None:
    beams = task.ask(noise(5), QUESTION, options=DecodingOptions(beams=4, n_best=3))
    assert len(beams.top) == 3
    assert beams.answer == beams.top[0][0]
    options = [DecodingOptions(temperature=9, seed=seed) for seed in (1, 1, 2)]
    drawn = [task.ask(noise(5), QUESTION, options=each).token_ids for each in options]
    assert drawn[0] == drawn[1] != drawn[2]
    forced = task.ask(noise(5), QUESTION, options=DecodingOptions(prefix="dog house"))
    assert forced.answer.startswith("dog house")


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"answers": ["zebra"]}, "answers: expected words that this model knows, found 'zebra'"),
        ({"answers": ["cat"], "beams": 2}, "beams: expected none beside a list of answers"),
        ({"answers": []}, "answers: expected a list of them"),
        ({"answers": "cat"}, "answers: expected a list of them, found 'cat'"),
        ({"options": DecodingOptions(n_best=2)}, "n_best: expected at most the 1 of beams"),
    ],
)
def test_what_cannot_be_asked(task: VqaTask, noise: Callable[[int], Path], asked: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        task.ask(noise(0), QUESTION, **asked)
