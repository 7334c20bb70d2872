"""The two ways in which a bundle answers questions: it chooses among its labels, or generates the answer's words.

Both take encoded images and questions, many a run; `vqa.py` brings the images and the text.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from xattn_runtime.bundle.decoding import Decoding
from xattn_runtime.bundle.folder import Bundle
from xattn_runtime.errors import BundleError, UserError
from xattn_runtime.execution.session import GraphSession, SessionSettings, Tensor, open_session
from xattn_runtime.generate.likelihood import log_likelihoods
from xattn_runtime.generate.options import DecodingOptions, Stop
from xattn_runtime.generate.processors import log_softmax
from xattn_runtime.generate.sequence import Sequence as TokenSequence
from xattn_runtime.json_reader import show
from xattn_runtime.preprocess.text import EncodedQuestion, TextCodec
from xattn_runtime.tasks.shared.generation import TextGenerator, open_generation
from xattn_runtime.tasks.shared.image_encoder import (
    EncodedImage,
    check_key_values,
    concatenate,
    padded,
)
from xattn_runtime.tasks.shared.streaming import before_stop, stop_at
from xattn_runtime.tasks.shared.text_encoder import open_reader

__all__ = ["AnswerRequest", "Answerer", "Chooser", "Reply", "Writer"]

# What the probabilities of answers that were all ruled out are divided by.
_LEAST = 1e-30


@dataclass(frozen=True)
class AnswerRequest:
    """What is requested beside the question.

    top_k: the most answers to return. answers: the only ones allowed, each once. options: of decoding.
    """

    top_k: int = 5
    answers: tuple[str, ...] | None = None
    options: DecodingOptions = field(default_factory=DecodingOptions)


@dataclass(frozen=True)
class Reply:
    """An answer with its probability, the most probable ones in order, and the token ids generated for it."""

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
        self, images: Sequence[EncodedImage], questions: Sequence[EncodedQuestion], request: AnswerRequest
    ) -> list[Reply]:
        """The answer to each pair; `top` has at most `request.top_k` answers.

        UserError for options of decoding where nothing is decoded, and for answers that are not possible.
        """

    def logits(self, image: EncodedImage, question: EncodedQuestion, token_ids: Sequence[int]) -> NDArray[np.float32]:
        """What the answer is chosen by: float32 `[answers]`, or `[len(token_ids) + 1, vocabulary]` along the ids."""


class Chooser:
    """Answers by a classifier over the bundle's labels."""

    special_tokens = True

    def __init__(self, bundle: Bundle, settings: SessionSettings, encoder: GraphSession, labels: Sequence[str]) -> None:
        """Load the classifier; BundleError where it does not fit `encoder`, or has another number of answers."""
        self._labels = labels
        calibration = bundle.manifest.calibration
        self._temperature = 1.0 if calibration is None else calibration.temperature
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
        self, images: Sequence[EncodedImage], questions: Sequence[EncodedQuestion], request: AnswerRequest
    ) -> list[Reply]:
        """See `Answerer`. With a list of answers, the probabilities are those among them."""
        if request.options.non_default:
            name = request.options.non_default[0]
            raise UserError(
                f"{name}: expected none, as this bundle chooses among {len(self._labels)} answers, found "
                f"{show(getattr(request.options, name))}"
            )
        places = self._places(request.answers)
        if self._temperature == 1.0:
            probabilities = self._classify("probabilities", images, questions)
        else:
            probabilities = self._calibrated(images, questions)
        return [self._reply(row, places, request.top_k) for row in probabilities]

    def logits(self, image: EncodedImage, question: EncodedQuestion, token_ids: Sequence[int]) -> NDArray[np.float32]:
        """See `Answerer`: float32 `[answers]`."""
        logits: NDArray[np.float32] = self._classify("logits", [image], [question])[0]
        return logits

    def _classify(
        self, output: str, images: Sequence[EncodedImage], questions: Sequence[EncodedQuestion]
    ) -> NDArray[np.float32]:
        """One run: float32 `[batch, answers]`."""
        return self._run((output,), images, questions)[0]

    def _run(
        self, outputs: Sequence[str], images: Sequence[EncodedImage], questions: Sequence[EncodedQuestion]
    ) -> list[NDArray[np.float32]]:
        context = concatenate(images)
        image = {name: context[name] for name in self._image_names}
        return self._classifier.run(outputs, padded([question.ids for question in questions]) | image)

    def _calibrated(self, images: Sequence[EncodedImage], questions: Sequence[EncodedQuestion]) -> NDArray[np.float32]:
        """Probabilities at the temperature that was fitted to the bundle; of one kind with the graph's own.

        Those of one answer among all sum to 1, those of answers that are each judged by themselves do not.
        """
        logits, plain = self._run(("logits", "probabilities"), images, questions)
        scaled = logits / np.float32(self._temperature)
        if np.allclose(plain.sum(axis=1), 1, atol=1e-3):
            return np.exp(log_softmax(scaled))
        return np.asarray(1 / (1 + np.exp(-scaled)), dtype=np.float32)

    def _places(self, answers: Sequence[str] | None) -> NDArray[np.int64] | None:
        """Positions of the allowed answers among the labels."""
        if answers is None:
            return None
        known = {label: place for place, label in enumerate(self._labels)}
        for answer in answers:
            if answer not in known:
                raise UserError(
                    f"answers: expected some of this bundle's {len(known)}, such as {', '.join(self._labels[:5])}, "
                    f"found {show(answer)}"
                )
        return np.array([known[answer] for answer in answers], dtype=np.int64)

    def _reply(self, probabilities: NDArray[np.float32], places: NDArray[np.int64] | None, top_k: int) -> Reply:
        labels = self._labels
        if places is not None:
            labels = [labels[place] for place in places]
            probabilities = probabilities[places] / max(float(probabilities[places].sum()), _LEAST)
        order = np.argsort(-probabilities, kind="stable")[:top_k]
        top = tuple((labels[i], float(probabilities[i])) for i in order)
        return Reply(top[0][0], top[0][1], top)


class Writer:
    """Answers by generation: after a text encoder has read the question beside the image, or with it as a prompt.

    generator: what generates.
    """

    def __init__(
        self, bundle: Bundle, settings: SessionSettings, encoder: GraphSession, codec: TextCodec, decoding: Decoding
    ) -> None:
        """Load the decoder, and the text encoder if there is one; BundleError where they do not fit together."""
        self._codec = codec
        self._decoding = decoding
        self._has_images_in_prompt = bundle.manifest.tokenizer.image_layout is not None
        session = open_generation(bundle, settings)
        self._reader = open_reader(bundle, settings, encoder)
        producer = encoder if self._reader is None else self._reader.session
        self.generator = TextGenerator(bundle, settings, session, producer, decoding)
        self.special_tokens = self._reader is not None
        self._shown_ids = decoding.shown_prompt(is_followed=self._reader is None)

    def replies(
        self, images: Sequence[EncodedImage], questions: Sequence[EncodedQuestion], request: AnswerRequest
    ) -> list[Reply]:
        """See `Answerer`. `top` has the best answer, or the `n_best`; with a list of answers, all of them.

        The probability of a generated answer is that of all its tokens; of a listed one, its own over those of the
        whole list.
        """
        if request.answers is not None:
            return self._ranked(images, questions, request, request.answers)
        options, replies = request.options, dict[int, Reply]()
        for rows in self._rows_of_a_run(questions):
            context, decoding = self._read([images[row] for row in rows], [questions[row] for row in rows], options)
            stop = self._stop(options)
            generated = self.generator.generate_best(context, decoding, options.sampling, stop, options.n_best)
            for row, best in zip(rows, generated, strict=True):
                replies[row] = self._reply(best, options)
        return [replies[row] for row in range(len(questions))]

    def _reply(self, best: Sequence[TokenSequence], options: DecodingOptions) -> Reply:
        prefix = () if options.prefix is None else self._codec.encode_prefix(options.prefix)
        top = tuple(
            (
                before_stop(self._codec.decode((*self._shown_ids, *prefix, *one.token_ids)), options.stop),
                math.exp(sum(one.log_probs)),
            )
            for one in best
        )
        return Reply(top[0][0], top[0][1], top, (*prefix, *best[0].token_ids))

    def _stop(self, options: DecodingOptions) -> Stop | None:
        prefix = () if options.prefix is None else self._codec.encode_prefix(options.prefix)
        return stop_at(lambda ids: self._codec.decode((*self._shown_ids, *prefix, *ids)), options.stop)

    def _ranked(
        self,
        images: Sequence[EncodedImage],
        questions: Sequence[EncodedQuestion],
        request: AnswerRequest,
        answers: Sequence[str],
    ) -> list[Reply]:
        """Each pair's answers, the most likely first."""
        if request.options.non_default:
            name = request.options.non_default[0]
            raise UserError(f"{name}: expected none beside a list of answers, which are not generated; choose one")
        ids = [self._codec.encode_answer(answer) for answer in answers]
        replies = []
        for image, question in zip(images, questions, strict=True):
            context, decoding = self._read([image], [question], DecodingOptions(beams=1))
            scores = log_likelihoods(self.generator.decoder, context, decoding, ids)
            shares = np.exp(scores - np.logaddexp.reduce(scores))
            order = np.argsort(-scores, kind="stable")
            top = tuple((answers[i], float(shares[i])) for i in order[: request.top_k])
            replies.append(Reply(top[0][0], top[0][1], top, tuple(ids[int(order[0])])))
        return replies

    def logits(self, image: EncodedImage, question: EncodedQuestion, token_ids: Sequence[int]) -> NDArray[np.float32]:
        """See `Answerer`: float32 `[len(token_ids) + 1, vocabulary]`."""
        context, decoding = self._read([image], [question], DecodingOptions(beams=1))
        return self.generator.forced_logits(context, decoding.prompt_token_ids, token_ids)

    def _check_room(self, image: EncodedImage, prompt_ids: Sequence[int]) -> None:
        """UserError where a prompt with its images is longer than the model's positions, and they are why."""
        most, count = self._decoding.max_positions, self._codec.image_end(prompt_ids)
        if not self._has_images_in_prompt or most is None or len(prompt_ids) < most:
            return
        images = len(image.images.grids)
        raise UserError(
            f"images: expected a prompt of at most {most - 1} tokens, found {len(prompt_ids)}, {count} of them to the "
            f"end of {'the image' if images == 1 else f'{images} images'}; ask about fewer or smaller ones"
        )

    def _rows_of_a_run(self, questions: Sequence[EncodedQuestion]) -> Iterator[list[int]]:
        """The questions that can be answered together: of one length for a reader, else the very same."""
        groups: dict[object, list[int]] = {}
        for row, question in enumerate(questions):
            groups.setdefault(question.ids if self._reader is None else len(question.ids), []).append(row)
        yield from groups.values()

    def _read(
        self, images: Sequence[EncodedImage], questions: Sequence[EncodedQuestion], options: DecodingOptions
    ) -> tuple[dict[str, Tensor], Decoding]:
        """What the decoder attends to, and its settings."""
        prefix = () if options.prefix is None else self._codec.encode_prefix(options.prefix)
        if self._reader is None:
            ids = questions[0].ids
            self._check_room(images[0], ids)
            decoding = options.apply_to(self._decoding, (*ids, *prefix))
            if len(images) > 1:
                return concatenate(images), decoding
            prompt = decoding.prompt_token_ids
            return self.generator.begun(images[0], prompt, self._codec.image_end(prompt)), decoding
        read = self._reader.read(concatenate(images), [question.ids for question in questions])
        return read, options.apply_to(self._decoding, prefix)
