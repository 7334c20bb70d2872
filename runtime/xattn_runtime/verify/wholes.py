"""Runs the graphs of the whole model in a bundle beside its own way through preprocessing, encoder and decoding.

Images are taken at the size that the model takes, where resizing changes nothing: so that what is compared is how the
graphs were joined. How near resizing comes is in docs/whole-graph.md.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from xattn_runtime.bundle.folder import Bundle
from xattn_runtime.bundle.manifest import WHOLE_ROLES, GoldenCase
from xattn_runtime.execution.session import GraphSession, SessionSettings, open_session
from xattn_runtime.json_reader import show
from xattn_runtime.preprocess.image import open_image
from xattn_runtime.preprocess.steps import output_size_px
from xattn_runtime.preprocess.text import TextCodec
from xattn_runtime.tasks import Task, TaskInput, TaskResult, open_task

__all__ = ["WholeRun", "WholeVerdict", "compare_wholes", "run_wholes"]

_MOST_CASES = 3
# Where two tokens are nearer than that, as logarithms, rounding may choose either, and probabilities may differ so
# much: so many times what the bundle allows, and between these.
_TIES_OF_TOLERANCE, _LEAST_TIE, _MOST_TIE = 4.0, 0.01, 0.25


@dataclass(frozen=True)
class WholeRun:
    """What the graph of a role gave for each of a few golden cases: the tensors by their names."""

    role: str
    cases: tuple[TaskInput, ...]
    outputs: tuple[Mapping[str, NDArray[Any]], ...]


@dataclass(frozen=True)
class WholeVerdict:
    """What one graph of the whole model gave: `difference` says how that is not what the others give, if it is not."""

    role: str
    cases: int
    difference: str | None

    @property
    def passed(self) -> bool:
        """Whether it gave the same."""
        return self.difference is None


def run_wholes(bundle: Bundle, settings: SessionSettings, roles: Sequence[str] = WHOLE_ROLES) -> tuple[WholeRun, ...]:
    """Run on a few golden cases those of `roles` that the bundle has, one after the other.

    Each is freed before the next is loaded: best done before a task is loaded too, as every one of them holds all
    the weights of the model.
    Raises BundleError where a graph does not load or run or golden images cannot be read, ProviderError where the
    provider refuses it.
    """
    present = [role for role in roles if role in bundle.manifest.graphs]
    if not present or not settings.loops:
        return ()
    cases = tuple(_case(bundle, case) for case in bundle.manifest.golden.cases[:_MOST_CASES])
    return tuple(_run(bundle, open_session(bundle, role, settings), cases) for role in present)


def compare_wholes(task: Task, runs: Sequence[WholeRun]) -> tuple[WholeVerdict, ...]:
    """Compare the outputs of `run_wholes` with those of `task`, of the same bundle, on the same cases."""
    bundle = task.bundle
    if not runs:
        return ()
    if bundle.manifest.calibration is not None:
        # The graph of the whole model outputs the model's own probabilities.
        task = open_task(replace(bundle, manifest=replace(bundle.manifest, calibration=None)), task.settings)
    expected = _Expected(task, runs[0].cases)
    return tuple(_compare(expected, run) for run in runs)


class _Expected:
    """The outputs of the task for the cases; each is computed once, for all graphs that are compared with it."""

    def __init__(self, task: Task, cases: Sequence[TaskInput]) -> None:
        self.bundle, self.cases = task.bundle, cases
        self.codec = _codec(task.bundle)
        self._task = task
        self._logits: dict[tuple[int, tuple[int, ...]], NDArray[np.float32]] = {}
        self._answers: dict[int, TaskResult] = {}

    def answer(self, number: int) -> TaskResult:
        """The answer to a case, for a model that chooses among labels."""
        if number not in self._answers:
            self._answers[number] = self._task.answer(self.cases[number])
        return self._answers[number]

    def shown_ids(self, number: int) -> tuple[int, ...]:
        """Whose text the text for a case begins with."""
        decoding, has_reader = self.bundle.manifest.decoding, "text_encoder" in self.bundle.manifest.graphs
        is_followed = not has_reader and bool(self.cases[number].text or self.codec.encode_prompt())
        return () if decoding is None else decoding.shown_prompt(is_followed=is_followed)

    def logits(self, number: int, token_ids: tuple[int, ...]) -> NDArray[np.float32]:
        """The logits along tokens, for a model that generates them: each token of the whole is judged by these."""
        key = (number, token_ids)
        if key not in self._logits:
            self._logits[key] = self._task.token_logits(self.cases[number], token_ids)
        return self._logits[key]


def _case(bundle: Bundle, case: GoldenCase) -> TaskInput:
    """The image of a golden case, uint8 `[height, width, 3]`, at the size that the model takes; and the question."""
    height, width = output_size_px(bundle.manifest.image_steps)
    image = open_image(bundle.file(case.image)).convert("RGB").resize((width, height), Image.Resampling.BILINEAR)
    return TaskInput(np.asarray(image), case.input_text)


def _run(bundle: Bundle, session: GraphSession, cases: tuple[TaskInput, ...]) -> WholeRun:
    names, graphs = tuple(session.output_shapes), bundle.manifest.graphs
    codec = _codec(bundle)
    special = "decoder" not in graphs or "text_encoder" in graphs
    outputs = []
    for case in cases:
        question = case.text
        inputs: dict[str, NDArray[Any]] = {"images": np.asarray(case.image)[None]}
        if question is not None and "questions" in session.input_shapes:
            inputs["questions"] = np.array([question], dtype=object)
        elif question is not None:
            ids = codec.encode_question(question, special_tokens=special).ids
            inputs["input_ids"] = np.array([ids], np.int64)
        outputs.append(dict(zip(names, session.run(names, inputs), strict=True)))
    return WholeRun(session.role, cases, tuple(outputs))


def _compare(expected: _Expected, run: WholeRun) -> WholeVerdict:
    labels = expected.bundle.manifest.labels
    for number, outputs in enumerate(run.outputs):
        if labels is not None:
            difference = _between_answers(expected.bundle, labels, outputs, expected.answer(number))
        else:
            difference = _between_tokens(expected, number, outputs)
        if difference is not None:
            return WholeVerdict(run.role, len(run.outputs), difference)
    return WholeVerdict(run.role, len(run.outputs), None)


def _codec(bundle: Bundle) -> TextCodec:
    return TextCodec(bundle.file(bundle.manifest.tokenizer.file), bundle.manifest.tokenizer)


def _tie(bundle: Bundle) -> float:
    return min(max(_TIES_OF_TOLERANCE * bundle.manifest.golden.relative_rms, _LEAST_TIE), _MOST_TIE)


def _between_answers(
    bundle: Bundle, labels: Sequence[str], outputs: Mapping[str, NDArray[Any]], known: TaskResult
) -> str | None:
    """What is not as it should be, in words; None where all is."""
    tie = _tie(bundle)
    probabilities = outputs["probabilities"][0]
    expected = np.zeros_like(probabilities)
    for answer, probability in known.top:
        expected[labels.index(answer)] = probability
        if abs(probabilities[labels.index(answer)] - probability) > tie:
            return f"a probability of {probabilities[labels.index(answer)]:.3g} in place of {probability:.3g}"
    chosen = int(outputs["answer_ids"][0])
    if expected[chosen] < expected.max() - tie:
        return f"the answer {labels[chosen]!r} in place of {known.text!r}"
    return _between_texts(outputs, labels[chosen])


def _between_tokens(known: _Expected, number: int, outputs: Mapping[str, NDArray[Any]]) -> str | None:
    """What is not as it should be, in words; None where every token is the best, or the model is as sure of either."""
    decoding = known.bundle.manifest.decoding
    ends = decoding.end_token_ids if decoding else ()
    ids: list[int] = outputs["token_ids"][0].tolist()
    length = next((place for place, token_id in enumerate(ids) if token_id in ends), len(ids))
    tie = _tie(known.bundle)
    logits = known.logits(number, tuple(ids[:length]))
    log_probs = logits - np.log(np.sum(np.exp(logits - logits.max(-1, keepdims=True)), -1, keepdims=True))
    log_probs -= logits.max(-1, keepdims=True)
    for place, token_id in enumerate(ids[: length + 1]):
        expected, actual = float(log_probs[place, token_id]), float(outputs["log_probs"][0, place])
        if abs(expected - actual) > tie:
            return f"a log-probability of {actual:.3g} in place of {expected:.3g} for token {place}"
        best = int(log_probs[place].argmax())
        if expected < log_probs[place, best] - tie:
            return f"the token {token_id} in place of {best} after the token ids {ids[:place]}"
    return _between_texts(outputs, known.codec.decode((*known.shown_ids(number), *ids[:length])))


def _between_texts(outputs: Mapping[str, NDArray[Any]], text: str) -> str | None:
    if "texts" in outputs and (written := str(outputs["texts"][0])) != text:
        return f"the text {show(written)} in place of {show(text)}"
    return None
