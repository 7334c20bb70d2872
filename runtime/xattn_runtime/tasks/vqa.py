"""Visual question answering: an image and a question to an answer.

It joins preprocessing, image encoder, tokenizer and what answers of one bundle, and knows nothing of the model in it.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from xattn_runtime.arguments import whole_number
from xattn_runtime.bundle.folder import Bundle
from xattn_runtime.bundle.manifest import GoldenCase
from xattn_runtime.errors import BundleError, UserError
from xattn_runtime.execution.session import SessionSettings
from xattn_runtime.execution.settings import session_settings
from xattn_runtime.generate.options import DecodingOptions, decoding_options
from xattn_runtime.json_reader import show
from xattn_runtime.preprocess.text import EncodedQuestion, TextCodec
from xattn_runtime.preprocess.tokenizer import ONE_IMAGE, PromptImages
from xattn_runtime.tasks.answer import Answer, AnswerTiming
from xattn_runtime.tasks.chat import Chat, ChatParts
from xattn_runtime.tasks.protocol import CaseResult, Task, TaskInput, TaskResult, Times
from xattn_runtime.tasks.shared.answering import Answerer, AnswerRequest, Chooser, Reply, Writer
from xattn_runtime.tasks.shared.attention_maps import Attender, AttentionMap, hold_attention, words_of
from xattn_runtime.tasks.shared.closing import Closable, while_open
from xattn_runtime.tasks.shared.image_encoder import EncodedImage, ImageReader, milliseconds_since
from xattn_runtime.tasks.shared.prompt_images import PromptReader, kept_with
from xattn_runtime.tasks.shared.several import several_images, several_texts

if TYPE_CHECKING:
    from xattn_runtime.preprocess.image import ImageInput
    from xattn_runtime.tasks.shared.image_encoder import Taken
    from xattn_runtime.tasks.shared.prompt_images import Seen

__all__ = ["VqaTask"]

_QUESTION_BATCH = 64


class VqaTask(Closable, Task):
    """A visual question answering bundle, loaded. Calls from several threads at once are safe, and run side by side.

    `labels` are the answers that it chooses among; None where it generates them.
    """

    def __init__(self, bundle: Bundle, provider: str | SessionSettings = "cpu", threads: int | None = None) -> None:
        """Load the graphs of `bundle`; `threads` within an operator, by default the cores, at most 4.

        Raises BundleError, ProviderError or DependencyError.
        """
        manifest = bundle.manifest
        if manifest.task != "vqa":
            raise BundleError(f"{bundle.path}: expected a bundle for vqa, found one for {manifest.task}")
        self.bundle = bundle
        self.labels = manifest.labels
        self.settings = session_settings(provider, threads, bundle)
        self._images = ImageReader(bundle, self.settings)
        self._prompts = PromptReader(bundle, self._images)
        self._codec = TextCodec(bundle.file(manifest.tokenizer.file), manifest.tokenizer)
        self._answerer = self._open_answerer()
        self._attention = hold_attention(bundle, self.settings)

    @while_open
    def encode(self, image: Seen) -> EncodedImage:
        """The image, several in a list or a video, encoded once for any number of questions.

        Where images stand in the prompt, their part of it is computed with the first question and kept, up to 512 MiB
        of all images together: each further question then costs its own words.
        Raises ImageError where one cannot be used, UserError for more images or frames than the model takes.
        """
        return kept_with(self._prompts.encoded(image))

    @while_open
    def ask(
        self,
        image: Seen,
        question: str,
        top_k: int = 5,
        beams: int | None = None,
        answers: Sequence[str] | None = None,
        options: DecodingOptions | None = None,
    ) -> Answer:
        """The answer to one question, with the `top_k` most probable ones, or all that are known.

        image: one, or what `encode` gave; several in a list, or a `Video`, for a model that was trained on them.
        beams: sequences searched at once by a bundle that generates its answers; default: those of the bundle.
        answers: the only ones allowed; the probabilities are those among them.
        options: of decoding, where the bundle generates its answers.
        Raises ImageError, QuestionError, or UserError for a number out of range, options of decoding where nothing is
        generated, and answers that are not possible.
        """
        request = _request(top_k, beams, answers, options)
        began = time.perf_counter()
        self._prompts.check(image)
        encoded_question = self._encode(question)  # what is wrong with it shows before the image is encoded
        known = isinstance(image, EncodedImage)
        encoded = self._prompts.encoded(image)
        answer_began = time.perf_counter()
        if encoded.images != ONE_IMAGE:
            encoded_question = self._encode(question, encoded.images)
        reply = self._answerer.replies([encoded], [encoded_question], request)[0]
        timing = AnswerTiming(
            preprocess=0.0 if known else encoded.preprocess_ms,
            encode=0.0 if known else encoded.encode_ms,
            answer=milliseconds_since(answer_began),
            total=milliseconds_since(began),
        )
        return _answer(reply, encoded_question, timing)

    @while_open
    def ask_many(
        self,
        images: Iterable[ImageInput | EncodedImage],
        questions: Sequence[str],
        top_k: int = 5,
        beams: int | None = None,
        answers: Sequence[str] | None = None,
        options: DecodingOptions | None = None,
    ) -> list[Answer]:
        """The answers to pairs of an image and a question, many a run.

        An image that stands in several pairs (the same path, or the same object in a list) is encoded once; its time is
        not counted, and `answer` is each pair's share of its run.
        Raises as `ask` does; UserError where the two lists differ in length.
        """
        request = _request(top_k, beams, answers, options)
        questions = several_texts(questions, "questions")
        listed = self._listed(several_images(images))
        if len(listed) != len(questions):
            raise UserError(f"questions: expected one for each of {len(listed)} images, found {len(questions)}")
        encoded_questions = [self._encode(question) for question in questions]
        answered: list[Answer] = []
        for part, encoded in self._encoded_batches(listed):
            began = time.perf_counter()
            final_questions = [
                known if image.images == ONE_IMAGE else self._encode(question, image.images)
                for image, known, question in zip(encoded, encoded_questions[part], questions[part], strict=True)
            ]
            replies = self._answerer.replies(encoded, final_questions, request)
            share_ms = milliseconds_since(began) / len(replies)
            timing = AnswerTiming(preprocess=0.0, encode=0.0, answer=share_ms, total=share_ms)
            pairs = zip(replies, final_questions, strict=True)
            answered += [_answer(reply, question, timing) for reply, question in pairs]
        return answered

    def chat(self, images: Seen, system: str | None = None) -> Chat:
        """A conversation about an image, several in a list or a video; what was said before is not computed again.

        system: what the model is told to be, before all.
        Raises as `encode` does; UserError for a model that holds no conversations, and a system prompt that it takes
        none of.
        """
        running = self._running()
        running._chat_parts()
        running._prompts.check(images)
        return Chat(self._chat_parts, kept_with(running._prompts.encoded(images)), system)

    @while_open
    def _chat_parts(self) -> ChatParts:
        decoding = self.bundle.manifest.decoding
        if not isinstance(self._answerer, Writer) or decoding is None or self.bundle.manifest.tokenizer.chat is None:
            raise UserError(
                f"{self.bundle.path}: expected a bundle of a model that holds conversations, found one that answers "
                "single questions; use ask"
            )
        return ChatParts(self._codec, self._answerer.generator, decoding)

    @while_open
    def attention(self, image: ImageInput, question: str) -> AttentionMap:
        """What each word of the question attended to, where the bundle has a graph for it.

        Raises as `ask` does, and UserError for a bundle without the graph.
        """
        encoded_question = self._encode(question)
        attender = Attender(self.bundle, self._attention)
        held = self._images.hold(image)
        encoded = self._images.encode(held)
        answer = self.ask(encoded, question).answer
        weights = attender.of_question(encoded.tensors, encoded_question.ids)
        words, maps = words_of(encoded_question.ids, self._codec.decode, weights)
        return AttentionMap(f"{question} {answer}", words, maps, attender.seen(held))

    @while_open
    def answer(self, task_input: TaskInput) -> TaskResult:
        """See `Task`: the answer to the text as a question."""
        return _result(self.ask(task_input.image, task_input.text or ""))

    @while_open
    def answer_many(self, inputs: Sequence[TaskInput]) -> list[TaskResult]:
        """See `Task`: many a run."""
        answers = self.ask_many([each.image for each in inputs], [each.text or "" for each in inputs])
        return [_result(answer) for answer in answers]

    @while_open
    def run_case(self, case: GoldenCase) -> CaseResult:
        """See `Task`: the logits of the answers, or along the golden tokens; and the answer."""
        encoded, question = self.encode(self.bundle.file(case.image)), case.question or ""
        logits = self.logits(encoded, question, case.token_ids or ())
        return CaseResult({"logits": logits}, None if case.text is None else self.ask(encoded, question).answer)

    @while_open
    def token_logits(self, task_input: TaskInput, token_ids: Sequence[int]) -> NDArray[np.float32]:
        """See `Task`; after the text as a question."""
        return self.logits(self.encode(task_input.image), task_input.text or "", token_ids)

    @while_open
    def timed(self, image: ImageInput, case: GoldenCase) -> Times:
        """See `Task`: preprocess, encode, answer, total."""
        began = time.perf_counter()
        encoded = self._images.encode(image)
        answer_ms = self.ask(encoded, case.question or "").timing_ms.total
        return {
            "preprocess": [encoded.preprocess_ms],
            "encode": [encoded.encode_ms],
            "answer": [answer_ms],
            "total": [milliseconds_since(began)],
        }

    @while_open
    def question_ids(self, question: str) -> tuple[int, ...]:
        """Token ids of a question as the bundle's graphs take it; QuestionError where it cannot be used."""
        return self._encode(question).ids

    @while_open
    def logits(self, encoded: EncodedImage, question: str, token_ids: Sequence[int] = ()) -> NDArray[np.float32]:
        """What the answer is chosen by, float32: `[answers]` of a classifier.

        Of a decoder, `[len(token_ids) + 1, vocabulary]`, along given tokens.
        """
        return self._answerer.logits(encoded, self._encode(question, encoded.images), token_ids)

    def _open_answerer(self) -> Answerer:
        decoding = self.bundle.manifest.decoding
        if self.labels is not None:
            return Chooser(self.bundle, self.settings, self._images.session, self.labels)
        if decoding is not None:
            return Writer(self.bundle, self.settings, self._images.session, self._codec, decoding)
        raise BundleError(f"{self.bundle.path}: expected labels or decoding, found neither; export it again")

    def _encode(self, question: str, images: PromptImages = ONE_IMAGE) -> EncodedQuestion:
        return self._codec.encode_question(question, special_tokens=self._answerer.special_tokens, images=images)

    def _listed(self, images: Iterable[ImageInput | EncodedImage]) -> Sequence[Taken | EncodedImage]:
        """A list as it is; of anything else, what it gives one by one, each as it is then."""
        if isinstance(images, list | tuple):
            return images
        return [image if isinstance(image, EncodedImage) else self._images.take(image) for image in images]

    def _encoded_batches(self, images: Sequence[Taken | EncodedImage]) -> Iterator[tuple[slice, list[EncodedImage]]]:
        """Batches of encoded images with their place in `images`; what no later batch needs is let go."""
        keys = [os.fspath(image) if isinstance(image, str | os.PathLike) else id(image) for image in images]
        last_use = {key: i for i, key in enumerate(keys)}
        encoded: dict[str | int, EncodedImage] = {}
        for start in range(0, len(images), _QUESTION_BATCH):
            part = slice(start, start + _QUESTION_BATCH)
            new: dict[str | int, Taken] = {}
            for key, image in zip(keys[part], images[part], strict=True):
                if isinstance(image, EncodedImage):
                    encoded[key] = self._images.encoded(image)
                elif key not in encoded:
                    new[key] = image
            encoded |= zip(new, self._images.encode_many(list(new.values())), strict=True)
            yield part, [encoded[key] for key in keys[part]]
            encoded = {key: image for key, image in encoded.items() if last_use[key] >= part.stop}


def _result(answer: Answer) -> TaskResult:
    return TaskResult(answer.answer, answer.token_ids, answer.top, answer.to_dict())


def _answer(reply: Reply, question: EncodedQuestion, timing: AnswerTiming) -> Answer:
    return Answer(reply.answer, reply.confidence, reply.top, question.unknown_words, timing, reply.token_ids)


def _request(
    top_k: int, beams: int | None, answers: Sequence[str] | None, options: DecodingOptions | None
) -> AnswerRequest:
    top_k, decoding = whole_number("top_k", top_k, 1), decoding_options(options, beams)
    if answers is None:
        return AnswerRequest(top_k, None, decoding)
    if isinstance(answers, str):
        raise UserError(f"answers: expected a list of them, found {show(answers)}")
    listed = tuple(several_texts(answers, "answers"))
    if not listed:
        raise UserError("answers: expected a list of them, found an empty one")
    if len(set(listed)) < len(listed):
        twice = next(answer for answer in listed if listed.count(answer) > 1)
        raise UserError(f"answers: expected each once, found {show(twice)} twice; remove one")
    return AnswerRequest(top_k, listed, decoding)
