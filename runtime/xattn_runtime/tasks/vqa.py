"""Visual question answering: a picture and a question to one of the bundle's answers.

It joins preprocessing, image encoder, tokenizer and classifier of one bundle, and knows nothing of the model in it.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from xattn_runtime._reading import show
from xattn_runtime.bundle import Bundle
from xattn_runtime.contract import cross_names
from xattn_runtime.errors import BundleError, UserError
from xattn_runtime.preprocess.text import EncodedQuestion, TextCodec
from xattn_runtime.session import GraphSession, Tensor, open_session
from xattn_runtime.tasks.encoding import (
    EncodedImage,
    ImageEncoder,
    check_key_values,
    concatenate,
    milliseconds_since,
    session_settings,
)

if TYPE_CHECKING:
    from xattn_runtime.preprocess.image import ImageInput

__all__ = ["Answer", "AnswerTiming", "VqaTask"]

_QUESTION_BATCH = 64
# Padding is masked out, so any id will do that every vocabulary has.
_PAD_TOKEN_ID = 0


@dataclass(frozen=True)
class AnswerTiming:
    """Milliseconds of each stage; 0 for what an `EncodedImage` had behind it."""

    preprocess: float
    encode: float
    answer: float
    total: float


@dataclass(frozen=True)
class Answer:
    """An answer with its probability, the most probable ones in order, and the question's unknown words."""

    answer: str
    confidence: float
    top: tuple[tuple[str, float], ...]
    unknown_words: tuple[str, ...]
    timing_ms: AnswerTiming


class VqaTask:
    """A visual question answering bundle, loaded. Safe to call from one thread at a time."""

    def __init__(self, bundle: Bundle, provider: str = "cpu", threads: int | None = None) -> None:
        """Load the graphs of `bundle`; `threads` within an operator, by default the cores, at most 4.

        Raises BundleError, ProviderError or DependencyError.
        """
        labels = bundle.manifest.labels
        if labels is None:
            raise BundleError(f"{bundle.path}: expected a bundle for vqa, found one for {bundle.manifest.task}")
        self.bundle = bundle
        self.labels = labels
        self.settings = session_settings(provider, threads)
        self._encoder = ImageEncoder(bundle, self.settings)
        self._classifier = open_session(bundle, "classifier", self.settings)
        check_key_values(self._encoder.session, self._classifier)
        _check_labels(self._classifier, labels)
        self._cross_names = cross_names(self._classifier.layers("cross"))
        self._codec = TextCodec(bundle.file(bundle.manifest.tokenizer.file), bundle.manifest.tokenizer)

    def encode(self, image: ImageInput) -> EncodedImage:
        """The image, encoded once for any number of questions; ImageError where it cannot be used."""
        return self._encoder.encode(image)

    def ask(self, image: ImageInput | EncodedImage, question: str, top_k: int = 5) -> Answer:
        """The answer to one question, with the `top_k` most probable ones, or all where there are fewer.

        Raises ImageError, QuestionError, or UserError for a `top_k` below 1.
        """
        _check_top_k(top_k)
        began = time.perf_counter()
        encoded_question = self._codec.encode_question(question)
        known = isinstance(image, EncodedImage)
        encoded = image if isinstance(image, EncodedImage) else self.encode(image)
        answer_began = time.perf_counter()
        probabilities = self._classify("probabilities", [encoded], [encoded_question])[0]
        timing = AnswerTiming(
            preprocess=0.0 if known else encoded.preprocess_ms,
            encode=0.0 if known else encoded.encode_ms,
            answer=milliseconds_since(answer_began),
            total=milliseconds_since(began),
        )
        return self._answer(probabilities, encoded_question, top_k, timing)

    def ask_batch(
        self, images: Sequence[ImageInput | EncodedImage], questions: Sequence[str], top_k: int = 5
    ) -> list[Answer]:
        """The answers to pairs of an image and a question, many a run.

        An image that stands in several pairs (the same path, or the same object) is encoded once; its time is not
        counted, and `answer` is each pair's share of its run.
        Raises as `ask` does; UserError where the two lists differ in length.
        """
        _check_top_k(top_k)
        if len(images) != len(questions):
            raise UserError(f"questions: expected one for each of {len(images)} images, found {len(questions)}")
        encoded_questions = [self._codec.encode_question(question) for question in questions]
        answers: list[Answer] = []
        for part, encoded in self._encoded_batches(images):
            began = time.perf_counter()
            probabilities = self._classify("probabilities", encoded, encoded_questions[part])
            share_ms = milliseconds_since(began) / len(probabilities)
            timing = AnswerTiming(preprocess=0.0, encode=0.0, answer=share_ms, total=share_ms)
            pairs = zip(probabilities, encoded_questions[part], strict=True)
            answers += [self._answer(row, question, top_k, timing) for row, question in pairs]
        return answers

    def logits(self, encoded: EncodedImage, question: str) -> NDArray[np.float32]:
        """The classifier's logits, float32 `[answers]`."""
        logits: NDArray[np.float32] = self._classify("logits", [encoded], [self._codec.encode_question(question)])[0]
        return logits

    def _classify(
        self, output: str, encoded: Sequence[EncodedImage], questions: Sequence[EncodedQuestion]
    ) -> NDArray[np.float32]:
        """One run: float32 `[batch, answers]`."""
        cross = concatenate(encoded)
        inputs = _padded(questions) | {name: cross[name] for name in self._cross_names}
        scores: NDArray[np.float32] = self._classifier.run([output], inputs)[0]
        return scores

    def _encoded_batches(
        self, images: Sequence[ImageInput | EncodedImage]
    ) -> Iterator[tuple[slice, list[EncodedImage]]]:
        """Batches of encoded images with their place in `images`; what no later batch needs is let go."""
        keys = [os.fspath(image) if isinstance(image, str | os.PathLike) else id(image) for image in images]
        last_use = {key: i for i, key in enumerate(keys)}
        encoded: dict[str | int, EncodedImage] = {}
        for start in range(0, len(images), _QUESTION_BATCH):
            part = slice(start, start + _QUESTION_BATCH)
            new: dict[str | int, ImageInput] = {}
            for key, image in zip(keys[part], images[part], strict=True):
                if isinstance(image, EncodedImage):
                    encoded[key] = image
                elif key not in encoded:
                    new[key] = image
            encoded |= zip(new, self._encoder.encode_many(list(new.values())), strict=True)
            yield part, [encoded[key] for key in keys[part]]
            encoded = {key: image for key, image in encoded.items() if last_use[key] >= part.stop}

    def _answer(
        self, probabilities: NDArray[np.float32], question: EncodedQuestion, top_k: int, timing: AnswerTiming
    ) -> Answer:
        order = np.argsort(-probabilities, kind="stable")[:top_k]
        top = tuple((self.labels[i], float(probabilities[i])) for i in order)
        return Answer(top[0][0], top[0][1], top, question.unknown_words, timing)


def _padded(questions: Sequence[EncodedQuestion]) -> dict[str, Tensor]:
    """`input_ids` and `attention_mask`, int64 `[batch, longest]`, padded on the right."""
    longest = max(len(question.ids) for question in questions)
    input_ids = np.full((len(questions), longest), _PAD_TOKEN_ID, dtype=np.int64)
    attention_mask = np.zeros((len(questions), longest), dtype=np.int64)
    for row, question in enumerate(questions):
        input_ids[row, : len(question.ids)] = question.ids
        attention_mask[row, : len(question.ids)] = 1
    return {"input_ids": input_ids, "attention_mask": attention_mask}


def _check_labels(classifier: GraphSession, labels: tuple[str, ...]) -> None:
    answers = classifier.output_shapes["logits"][1]
    if isinstance(answers, int) and answers != len(labels):
        raise BundleError(
            f"{classifier.path}: output logits: expected {len(labels)} answers, one a label, found {answers}; "
            "export it again"
        )


def _check_top_k(top_k: int) -> None:
    if top_k < 1:
        raise UserError(f"top_k: expected at least 1, found {show(top_k)}")
