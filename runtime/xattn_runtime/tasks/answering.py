"""The two ways in which a bundle answers questions: it chooses among its labels, or generates the answer's words.

Both take encoded images and questions, many a run; `vqa.py` brings the pictures and the text.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from xattn_runtime._reading import show
from xattn_runtime.bundle import Bundle
from xattn_runtime.errors import BundleError, UserError
from xattn_runtime.generate.settings import Decoding
from xattn_runtime.preprocess.text import EncodedQuestion, TextCodec
from xattn_runtime.session import GraphSession, SessionSettings, Tensor, open_session
from xattn_runtime.tasks.encoding import (
    EncodedImage,
    check_key_values,
    concatenate,
    padded,
)
from xattn_runtime.tasks.generation import TextGenerator, open_generation
from xattn_runtime.tasks.reading import open_reader

__all__ = ["Answerer", "Chooser", "Reply", "Writer"]


@dataclass(frozen=True)
class Reply:
    """An answer with its probability, the most probable ones in order, and what was generated to give it."""

    answer: str
    confidence: float
    top: tuple[tuple[str, float], ...]
    token_ids: tuple[int, ...] = ()


class Answerer(Protocol):
    """What answers pairs of an image and a question.

    special_tokens: whether questions come with those that the tokenizer puts around a text.
    """

    special_tokens: bool

    def replies(
        self, images: Sequence[EncodedImage], questions: Sequence[EncodedQuestion], top_k: int, beams: int | None
    ) -> list[Reply]:
        """The answer to each pair; `top` has at most `top_k` answers.

        `beams`: sequences searched at once, by default as the bundle says; UserError where nothing is searched.
        """

    def logits(self, image: EncodedImage, question: EncodedQuestion, token_ids: Sequence[int]) -> NDArray[np.float32]:
        """What the answer is chosen by: float32 `[answers]`, or `[len(token_ids) + 1, vocabulary]` along the ids."""


class Chooser:
    """Answers by a classifier over the bundle's labels."""

    special_tokens = True

    def __init__(self, bundle: Bundle, settings: SessionSettings, encoder: GraphSession, labels: Sequence[str]) -> None:
        """Load the classifier; BundleError where it does not fit `encoder`, or has another number of answers."""
        self._labels = labels
        self._classifier = open_session(bundle, "classifier", settings)
        check_key_values(encoder, self._classifier)
        self._image_names = [name for name in self._classifier.input_shapes if name in encoder.output_shapes]
        answers = self._classifier.output_shapes["logits"][1]
        if isinstance(answers, int) and answers != len(labels):
            raise BundleError(
                f"{self._classifier.path}: output logits: expected {len(labels)} answers, one a label, found "
                f"{answers}; export it again"
            )

    def replies(
        self, images: Sequence[EncodedImage], questions: Sequence[EncodedQuestion], top_k: int, beams: int | None
    ) -> list[Reply]:
        """See `Answerer`."""
        if beams is not None:
            raise UserError(
                f"beams: expected none, as this bundle chooses among {len(self._labels)} answers, found {show(beams)}"
            )
        return [self._reply(row, top_k) for row in self._classify("probabilities", images, questions)]

    def logits(self, image: EncodedImage, question: EncodedQuestion, token_ids: Sequence[int]) -> NDArray[np.float32]:
        """See `Answerer`: float32 `[answers]`."""
        logits: NDArray[np.float32] = self._classify("logits", [image], [question])[0]
        return logits

    def _classify(
        self, output: str, images: Sequence[EncodedImage], questions: Sequence[EncodedQuestion]
    ) -> NDArray[np.float32]:
        """One run: float32 `[batch, answers]`."""
        context = concatenate(images)
        image = {name: context[name] for name in self._image_names}
        inputs = padded([question.ids for question in questions]) | image
        scores: NDArray[np.float32] = self._classifier.run([output], inputs)[0]
        return scores

    def _reply(self, probabilities: NDArray[np.float32], top_k: int) -> Reply:
        order = np.argsort(-probabilities, kind="stable")[:top_k]
        top = tuple((self._labels[i], float(probabilities[i])) for i in order)
        return Reply(top[0][0], top[0][1], top)


class Writer:
    """Answers by generation: after a text encoder has read the question beside the image, or with it as a prompt."""

    def __init__(
        self, bundle: Bundle, settings: SessionSettings, encoder: GraphSession, codec: TextCodec, decoding: Decoding
    ) -> None:
        """Load the decoder, and the text encoder if there is one; BundleError where they do not fit together."""
        self._codec = codec
        self._decoding = decoding
        session = open_generation(bundle, settings)
        self._reader = open_reader(bundle, settings, encoder)
        giver = encoder if self._reader is None else self._reader.session
        self._generator = TextGenerator(bundle, settings, session, giver, decoding)
        self.special_tokens = self._reader is not None

    def replies(
        self, images: Sequence[EncodedImage], questions: Sequence[EncodedQuestion], top_k: int, beams: int | None
    ) -> list[Reply]:
        """See `Answerer`. `top` has the one answer that was found; its probability is that of all its tokens."""
        replies: dict[int, Reply] = {}
        for rows in self._rows_of_a_run(questions):
            context, decoding = self._read([images[row] for row in rows], [questions[row] for row in rows], beams)
            for row, found in zip(rows, self._generator.generate(context, decoding), strict=True):
                answer, probability = self._codec.decode(found.token_ids), math.exp(sum(found.log_probs))
                replies[row] = Reply(answer, probability, ((answer, probability),), found.token_ids)
        return [replies[row] for row in range(len(questions))]

    def logits(self, image: EncodedImage, question: EncodedQuestion, token_ids: Sequence[int]) -> NDArray[np.float32]:
        """See `Answerer`: float32 `[len(token_ids) + 1, vocabulary]`."""
        context, decoding = self._read([image], [question], None)
        return self._generator.forced_logits(context, decoding.prompt_token_ids, token_ids)

    def _rows_of_a_run(self, questions: Sequence[EncodedQuestion]) -> Iterator[list[int]]:
        """The questions that can be answered together: of one length for a reader, else the very same."""
        groups: dict[object, list[int]] = {}
        for row, question in enumerate(questions):
            groups.setdefault(question.ids if self._reader is None else len(question.ids), []).append(row)
        yield from groups.values()

    def _read(
        self, images: Sequence[EncodedImage], questions: Sequence[EncodedQuestion], beams: int | None
    ) -> tuple[dict[str, Tensor], Decoding]:
        """What the decoder attends to, and its settings."""
        context = concatenate(images)
        if self._reader is None:
            return context, self._decoding.asked(prompt_ids=questions[0].ids, beams=beams)
        read = self._reader.read(context, [question.ids for question in questions])
        return read, self._decoding.asked(beams=beams)
