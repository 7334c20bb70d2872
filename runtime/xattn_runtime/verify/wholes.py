"""Runs the graphs of the whole model in a bundle beside its own way through preprocessing, encoder and decoding.

Pictures are given at the size that the model takes, where resizing changes nothing: so that what is compared is how the
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
from xattn_runtime.bundle.manifest import WHOLE_ROLES
from xattn_runtime.execution.session import GraphSession, SessionSettings, open_session
from xattn_runtime.json_reader import show
from xattn_runtime.preprocess.image import open_image
from xattn_runtime.preprocess.steps import output_size_px
from xattn_runtime.preprocess.text import TextCodec
from xattn_runtime.tasks.caption import CaptionTask
from xattn_runtime.tasks.retrieval import RetrievalTask
from xattn_runtime.tasks.sentiment import SentimentTask
from xattn_runtime.tasks.shared.image_encoder import EncodedImage
from xattn_runtime.tasks.vqa import Answer, VqaTask

__all__ = ["WholeRun", "WholeVerdict", "compare_wholes", "run_wholes"]

_MOST_CASES = 3
# Where two tokens are nearer than that, as logarithms, rounding may choose either, and probabilities may differ so
# much: so many times what the bundle allows, and between these.
_TIES_OF_TOLERANCE, _LEAST_TIE, _MOST_TIE = 4.0, 0.01, 0.25


@dataclass(frozen=True)
class WholeRun:
    """What the graph of a role gave for each of a few golden cases: the tensors by their names."""

    role: str
    found: tuple[Mapping[str, NDArray[Any]], ...]


@dataclass(frozen=True)
class _Case:
    """A picture uint8 `[height, width, 3]`, the question asked of it, the picture encoded, and the answer.

    The answer is None of a model that writes one: each token that the whole wrote is judged by the logits for it.
    """

    image: NDArray[np.uint8]
    question: str | None
    encoded: EncodedImage
    answer: Answer | None


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

    Each is given back before the next is loaded: best done before a task is loaded too, as every one of them holds all
    the weights of the model.
    Raises BundleError where a graph does not load or run or golden pictures cannot be read, ProviderError where the
    provider refuses it.
    """
    found = [role for role in roles if role in bundle.manifest.graphs]
    if not found or bundle.manifest.task in ("retrieval", "sentiment") or not settings.loops:
        return ()
    cases = [_case(bundle, number) for number in _numbers(bundle)]
    return tuple(_run(bundle, open_session(bundle, role, settings), cases) for role in found)


def compare_wholes(
    task: CaptionTask | VqaTask | RetrievalTask | SentimentTask, runs: Sequence[WholeRun]
) -> tuple[WholeVerdict, ...]:
    """Compare what `run_wholes` gave with what `task`, of the same bundle, gives on the same cases."""
    bundle = task.bundle
    if isinstance(task, RetrievalTask | SentimentTask) or not runs:
        return ()
    if isinstance(task, VqaTask) and bundle.manifest.calibration is not None:
        # The graph of the whole model gives the model's own probabilities.
        task = VqaTask(replace(bundle, manifest=replace(bundle.manifest, calibration=None)), task.settings)
    cases = [_expected(task, *_case(bundle, number)) for number in _numbers(bundle)]
    return tuple(_compare(task, run, cases) for run in runs)


def _numbers(bundle: Bundle) -> range:
    return range(min(_MOST_CASES, len(bundle.manifest.golden.cases)))


def _case(bundle: Bundle, number: int) -> tuple[NDArray[np.uint8], str | None]:
    """The picture of a golden case, uint8 `[height, width, 3]`, at the size that the model takes; and the question."""
    case = bundle.manifest.golden.cases[number]
    height, width = output_size_px(bundle.manifest.image_steps)
    picture = open_image(bundle.file(case.image)).convert("RGB").resize((width, height), Image.Resampling.BILINEAR)
    return np.asarray(picture), case.question


def _expected(task: CaptionTask | VqaTask, image: NDArray[np.uint8], question: str | None) -> _Case:
    encoded = task.encode(image)
    answer = task.ask(encoded, question or "") if isinstance(task, VqaTask) and task.labels is not None else None
    return _Case(image, question, encoded, answer)


def _run(bundle: Bundle, session: GraphSession, cases: Sequence[tuple[NDArray[np.uint8], str | None]]) -> WholeRun:
    names, graphs = tuple(session.output_shapes), bundle.manifest.graphs
    codec = _codec(bundle)
    special = "decoder" not in graphs or "text_encoder" in graphs
    found = []
    for image, question in cases:
        inputs: dict[str, NDArray[Any]] = {"images": image[None]}
        if question is not None and "questions" in session.input_shapes:
            inputs["questions"] = np.array([question], dtype=object)
        elif question is not None:
            ids = codec.encode_question(question, special_tokens=special).ids
            inputs["input_ids"] = np.array([ids], np.int64)
        found.append(dict(zip(names, session.run(names, inputs), strict=True)))
    return WholeRun(session.role, tuple(found))


def _compare(task: CaptionTask | VqaTask, run: WholeRun, cases: Sequence[_Case]) -> WholeVerdict:
    codec = _codec(task.bundle)
    for case, found in zip(cases, run.found, strict=True):
        if case.answer is not None and task.bundle.manifest.labels is not None:
            difference = _between_answers(task.bundle, task.bundle.manifest.labels, found, case.answer)
        else:
            difference = _between_tokens(task, codec, case, found)
        if difference is not None:
            return WholeVerdict(run.role, len(cases), difference)
    return WholeVerdict(run.role, len(cases), None)


def _codec(bundle: Bundle) -> TextCodec:
    return TextCodec(bundle.file(bundle.manifest.tokenizer.file), bundle.manifest.tokenizer)


def _tie(bundle: Bundle) -> float:
    return min(max(_TIES_OF_TOLERANCE * bundle.manifest.golden.relative_rms, _LEAST_TIE), _MOST_TIE)


def _between_answers(
    bundle: Bundle, labels: Sequence[str], found: Mapping[str, NDArray[Any]], known: Answer
) -> str | None:
    """What is not as it should be, in words; None where all is."""
    tie = _tie(bundle)
    probabilities = found["probabilities"][0]
    expected = np.zeros_like(probabilities)
    for answer, probability in known.top:
        expected[labels.index(answer)] = probability
        if abs(probabilities[labels.index(answer)] - probability) > tie:
            return f"a probability of {probabilities[labels.index(answer)]:.3g} in place of {probability:.3g}"
    chosen = int(found["answer_ids"][0])
    if expected[chosen] < expected.max() - tie:
        return f"the answer {labels[chosen]!r} in place of {known.answer!r}"
    return _between_texts(found, labels[chosen])


def _between_tokens(
    task: CaptionTask | VqaTask, codec: TextCodec, case: _Case, found: Mapping[str, NDArray[Any]]
) -> str | None:
    """What is not as it should be, in words; None where every token is the best, or the model is as sure of either."""
    ends = task.bundle.manifest.decoding.end_token_ids if task.bundle.manifest.decoding else ()
    ids: list[int] = found["token_ids"][0].tolist()
    length = next((place for place, token_id in enumerate(ids) if token_id in ends), len(ids))
    tie = _tie(task.bundle)
    if isinstance(task, CaptionTask):
        logits = task.forced_logits(case.encoded, ids[:length])
    else:
        logits = task.logits(case.encoded, case.question or "", ids[:length])
    log_probs = logits - np.log(np.sum(np.exp(logits - logits.max(-1, keepdims=True)), -1, keepdims=True))
    log_probs -= logits.max(-1, keepdims=True)
    for place, token_id in enumerate(ids[: length + 1]):
        expected, given = float(log_probs[place, token_id]), float(found["log_probs"][0, place])
        if abs(expected - given) > tie:
            return f"a log-probability of {given:.3g} in place of {expected:.3g} for token {place}"
        best = int(log_probs[place].argmax())
        if expected < log_probs[place, best] - tie:
            return f"the token {token_id} in place of {best} after the token ids {ids[:place]}"
    return _between_texts(found, codec.decode(ids[:length]))


def _between_texts(found: Mapping[str, NDArray[Any]], text: str) -> str | None:
    if "texts" in found and (written := str(found["texts"][0])) != text:
        return f"the text {show(written)} in place of {show(text)}"
    return None
