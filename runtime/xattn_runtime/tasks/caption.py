"""Captioning: an image to a sentence.

It joins preprocessing, image encoder, decoding and tokenizer of one bundle; it knows nothing of the model.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import TYPE_CHECKING, Any, Literal, overload

import numpy as np
from numpy.typing import NDArray

from xattn_runtime.arguments import choice, whole_number
from xattn_runtime.bundle.decoding import Decoding
from xattn_runtime.bundle.folder import Bundle
from xattn_runtime.bundle.manifest import GoldenCase
from xattn_runtime.errors import BundleError, ImageError, UserError
from xattn_runtime.execution.session import SessionSettings, Tensor
from xattn_runtime.execution.settings import session_settings
from xattn_runtime.generate.greedy import GreedyStep, greedy_steps
from xattn_runtime.generate.options import DecodingOptions, Stop, decoding_options
from xattn_runtime.generate.sampling import Sampler
from xattn_runtime.generate.sequence import Sequence as TokenSequence
from xattn_runtime.preprocess.text import TextCodec
from xattn_runtime.preprocess.tokenizer import ONE_IMAGE, PromptImages
from xattn_runtime.tasks.protocol import CaseResult, Task, TaskInput, TaskResult, Times
from xattn_runtime.tasks.shared.attention_maps import Attender, AttentionMap, hold_attention, words_of
from xattn_runtime.tasks.shared.closing import Closable, while_open
from xattn_runtime.tasks.shared.generation import TextGenerator, open_generation
from xattn_runtime.tasks.shared.image_encoder import (
    EncodedImage,
    ImageReader,
    PreparedImage,
    concatenate,
    milliseconds_since,
)
from xattn_runtime.tasks.shared.prefetch import compute_each
from xattn_runtime.tasks.shared.prompt_images import kept_with
from xattn_runtime.tasks.shared.several import ReadyImage, image_work, several_images
from xattn_runtime.tasks.shared.streaming import StreamedToken, TextStream, before_stop, stop_at
from xattn_runtime.tasks.shared.text_encoder import open_reader

if TYPE_CHECKING:
    from xattn_runtime.preprocess.image import ImageInput

__all__ = ["Caption", "CaptionTask", "CaptionTiming", "ScoredText"]


_AS_BUNDLED = DecodingOptions()
# Checking what is asked of a small model takes as long as a tenth of a token, and most calls ask the same.
_KNOWN = 64


@dataclass(frozen=True)
class CaptionTiming:
    """Milliseconds of each stage; 0 for what an `EncodedImage` had behind it."""

    preprocess: float
    encode: float
    decode: float
    total: float


@dataclass(frozen=True)
class ScoredText:
    """One of several texts. `score` as in `Caption`; `search_score` is what the search ordered them by."""

    text: str
    token_ids: tuple[int, ...]
    score: float
    search_score: float


@dataclass(frozen=True)
class Caption:
    """A caption. `score` is the mean natural log-probability of the generated tokens, the end token included.

    It is the model's own, whatever the settings change of the scores that decoding compares. `token_ids` begin with
    those of a prefix, which is not counted in the score. `n_best` are this and the next best, or the draws, where
    several were asked for.
    """

    text: str
    token_ids: tuple[int, ...]
    score: float
    timing_ms: CaptionTiming
    n_best: tuple[ScoredText, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """As JSON values, without the times; `n_best` where several were asked for."""
        values: dict[str, Any] = {"caption": self.text, "token_ids": list(self.token_ids), "score": self.score}
        if self.n_best:
            values["n_best"] = [
                {
                    "caption": one.text,
                    "token_ids": list(one.token_ids),
                    "score": one.score,
                    "search_score": one.search_score,
                }
                for one in self.n_best
            ]
        return values


@dataclass(frozen=True)
class _CallSettings:
    """The settings of one call, and the prompt's ids where a text encoder reads it rather than the decoder.

    A text begins with what `shown_ids` and `prefix_ids` say.
    """

    decoding: Decoding
    read_ids: tuple[int, ...]
    shown_ids: tuple[int, ...]
    prefix_ids: tuple[int, ...]
    stop: Stop | None


class CaptionTask(Closable, Task):
    """A captioning bundle, loaded. Calls from several threads at once are safe, and run side by side."""

    def __init__(self, bundle: Bundle, provider: str | SessionSettings = "cpu", threads: int | None = None) -> None:
        """Load the graphs of `bundle`; `threads` within an operator, by default the cores, at most 4.

        Raises BundleError, ProviderError or DependencyError.
        """
        decoding = bundle.manifest.decoding
        if decoding is None:
            raise BundleError(f"{bundle.path}: expected a bundle for caption, found one for {bundle.manifest.task}")
        self.bundle = bundle
        self.settings = session_settings(provider, threads, bundle)
        session = open_generation(bundle, self.settings)
        self._images = ImageReader(bundle, self.settings)
        self._texts = open_reader(bundle, self.settings, self._images.session)
        producer = self._images.session if self._texts is None else self._texts.session
        self._generator = TextGenerator(bundle, self.settings, session, producer, decoding)
        self._codec = TextCodec(bundle.file(bundle.manifest.tokenizer.file), bundle.manifest.tokenizer)
        self._attention = hold_attention(bundle, self.settings)
        self._known = lru_cache(_KNOWN)(partial(_call_settings, self._codec, decoding, self._texts is not None))

    @while_open
    def encode(self, image: ImageInput) -> EncodedImage:
        """The image, encoded once for any number of calls; ImageError where it cannot be used."""
        return kept_with(self._images.encode(image))

    @while_open
    def stream(
        self, image: ImageInput | EncodedImage, prompt: str | None = None, options: DecodingOptions | None = None
    ) -> Iterator[StreamedToken]:
        """The tokens of a caption, each as soon as it is computed; their texts together are the caption's.

        They are the best, or drawn where `options` say so. It may be stopped at any token.
        Raises as `caption` does, before the first token; UserError also for beams, and for several texts.
        """
        options = decoding_options(options)
        for name, value in (("beams", options.beams or 1), ("n_best", options.n_best)):
            if value > 1:
                raise UserError(f"{name}: expected 1, as what is streamed cannot be taken back, found {value}")
        options = options.with_shortcuts(1, None)
        settings = self._call_settings(ONE_IMAGE, prompt, options)
        encoded = self._images.encoded(image)
        if encoded.images != ONE_IMAGE:
            settings = self._call_settings(encoded.images, prompt, options)
        return self._streamed(encoded, settings, options)

    def _streamed(
        self, encoded: EncodedImage, settings: _CallSettings, options: DecodingOptions
    ) -> Iterator[StreamedToken]:
        sampler = None if options.sampling is None else Sampler(options.sampling, 1)
        context = self._begun(encoded, settings)
        text = TextStream(
            lambda ids: self._codec.decode((*settings.shown_ids, *settings.prefix_ids, *ids)),
            settings.decoding.end_token_ids,
            options.stop,
        )
        most = settings.decoding.max_new_tokens
        steps = greedy_steps(self._generator.decoder, context, settings.decoding, sampler, settings.stop)
        for number, step in enumerate(steps, 1):
            last = bool(step.ended[0]) or number == most
            yield text.add(int(step.token_ids[0]), float(step.log_probs[0]), last=last)

    @while_open
    def caption(
        self,
        image: ImageInput | EncodedImage,
        prompt: str | None = None,
        beams: int | None = None,
        max_new_tokens: int | None = None,
        options: DecodingOptions | None = None,
    ) -> Caption:
        """The caption of one image; defaults are those of the bundle.

        prompt: text that the caption continues, or that says what is asked for; it is not part of the caption.
        beams: sequences searched at once; 1 is greedy decoding.
        max_new_tokens: end token included; at most what the model has positions for.
        options: these two and everything else that can be asked of decoding.
        Raises ImageError, or UserError for a prompt that cannot be used, a number out of range, or options that
        contradict each other.
        """
        began = time.perf_counter()
        known = isinstance(image, EncodedImage)
        options = decoding_options(options, beams, max_new_tokens)
        if not known:
            self._call_settings(ONE_IMAGE, prompt, options)  # what is wrong with them shows before the image is encoded
        encoded = self._images.encoded(image)
        decode_began = time.perf_counter()
        best, text = self._generate([encoded], prompt, options)[0]
        timing = CaptionTiming(
            preprocess=0.0 if known else encoded.preprocess_ms,
            encode=0.0 if known else encoded.encode_ms,
            decode=milliseconds_since(decode_began),
            total=milliseconds_since(began),
        )
        return _caption(best, text, timing)

    @overload
    def caption_each(
        self,
        images: Iterable[ImageInput | EncodedImage],
        prompt: str | None = None,
        beams: int | None = None,
        max_new_tokens: int | None = None,
        options: DecodingOptions | None = None,
        *,
        batch: int = 8,
        at_once: int = 1,
        errors: Literal["raise"],
    ) -> Iterator[Caption]: ...

    @overload
    def caption_each(
        self,
        images: Iterable[ImageInput | EncodedImage],
        prompt: str | None = None,
        beams: int | None = None,
        max_new_tokens: int | None = None,
        options: DecodingOptions | None = None,
        *,
        batch: int = 8,
        at_once: int = 1,
        errors: Literal["return"] = "return",
    ) -> Iterator[Caption | ImageError]: ...

    def caption_each(
        self,
        images: Iterable[ImageInput | EncodedImage],
        prompt: str | None = None,
        beams: int | None = None,
        max_new_tokens: int | None = None,
        options: DecodingOptions | None = None,
        *,
        batch: int = 8,
        at_once: int = 1,
        errors: Literal["raise", "return"] = "return",
    ) -> Iterator[Caption] | Iterator[Caption | ImageError]:
        """The captions of many images, in order; each one's times are its share of its batch. See `caption`.

        batch: images that are encoded and decoded together. The next ones are opened and preprocessed in other threads
            meanwhile.
        at_once: batches that the model works on at the same time; as many as there are cores is fastest for a small
            model that was loaded with `threads=1`.
        errors: `return` the ImageError of an image that cannot be used, in its place, and continue with the next image;
            or `raise` it there.
        Raises UserError as `caption` does, before the first image is opened.
        """
        running = self._running()  # as `while_open` does, which knows no overloads
        options = decoding_options(options, beams, max_new_tokens)
        running._call_settings(ONE_IMAGE, prompt, options)
        batch, at_once = whole_number("batch", batch, 1), whole_number("at_once", at_once, 1)
        choice("errors", errors, ("raise", "return"))
        captions = running._caption_batches(several_images(images), prompt, options, batch, at_once)
        return captions if errors == "return" else _raised(captions)

    def _caption_batches(
        self,
        images: Iterable[ImageInput | EncodedImage],
        prompt: str | None,
        options: DecodingOptions,
        batch: int,
        at_once: int,
    ) -> Iterator[Caption | ImageError]:
        def captions_of(part: Sequence[ReadyImage]) -> list[Caption | ImageError]:
            new = self._images.encode_prepared([one for one in part if isinstance(one, PreparedImage)])
            usable = [one for one in part if not isinstance(one, ImageError)]
            encoded = [next(new) if isinstance(one, PreparedImage) else one for one in usable]
            known = [isinstance(one, EncodedImage) for one in usable]
            captions = iter(self._caption_encoded(encoded, known, prompt, options))
            return [one if isinstance(one, ImageError) else next(captions) for one in part]

        return compute_each(images, image_work(self._images, images, captions_of), batch, at_once)

    def _caption_encoded(
        self, encoded: Sequence[EncodedImage], known: Sequence[bool], prompt: str | None, options: DecodingOptions
    ) -> list[Caption]:
        """Captions of a batch; `known`: whether an image was encoded before the call."""
        if not encoded:
            return []
        began = time.perf_counter()
        generated = self._generate(encoded, prompt, options)
        decode_ms = milliseconds_since(began) / len(encoded)
        captions = []
        for (best, texts), one, is_known in zip(generated, encoded, known, strict=True):
            spent = (0.0, 0.0) if is_known else (one.preprocess_ms, one.encode_ms)
            captions.append(_caption(best, texts, CaptionTiming(*spent, decode_ms, sum(spent) + decode_ms)))
        return captions

    @while_open
    def attention(
        self, image: ImageInput, prompt: str | None = None, options: DecodingOptions | None = None
    ) -> AttentionMap:
        """What each word of the image's caption attended to, where the bundle has a graph for it.

        Raises as `caption` does, and UserError for a bundle without the graph.
        """
        options = decoding_options(options)
        settings = self._call_settings(ONE_IMAGE, prompt, options)
        attender = Attender(self.bundle, self._attention)
        held = self._images.hold(image)
        encoded = self._images.encode(held)
        caption = self._caption_encoded([encoded], [False], prompt, options)[0]
        prompt_ids = settings.decoding.prompt_token_ids
        prompt_ids = prompt_ids[: len(prompt_ids) - len(settings.prefix_ids)]
        context = self._context(encoded.tensors, settings)
        weights = attender.of_caption(context, prompt_ids, caption.token_ids)
        words, maps = words_of(caption.token_ids, self._codec.decode, weights)
        return AttentionMap(caption.text, words, maps, attender.seen(held))

    @while_open
    def answer(self, task_input: TaskInput) -> TaskResult:
        """See `Task`: the caption, after the text as a prompt."""
        caption = self.caption(task_input.image, task_input.text)
        return TaskResult(caption.text, caption.token_ids, data=caption.to_dict())

    @while_open
    def run_case(self, case: GoldenCase) -> CaseResult:
        """See `Task`: the logits along the golden tokens, and the caption."""
        encoded = self.encode(self.bundle.file(case.image))
        logits = self.forced_logits(encoded, case.token_ids or ())
        return CaseResult({"logits": logits}, None if case.text is None else self.caption(encoded).text)

    @while_open
    def token_logits(self, task_input: TaskInput, token_ids: Sequence[int]) -> NDArray[np.float32]:
        """See `Task`; without a prompt."""
        return self.forced_logits(self.encode(task_input.image), token_ids)

    @while_open
    def timed(self, image: ImageInput, case: GoldenCase) -> Times:
        """See `Task`: preprocess, encode, decode, total; and the same tokens one by one: prefill, and each step."""
        began = time.perf_counter()
        encoded = self._images.encode(image)
        decode_ms = self.caption(encoded).timing_ms.decode
        times = {
            "preprocess": [encoded.preprocess_ms],
            "encode": [encoded.encode_ms],
            "decode": [decode_ms],
            "total": [milliseconds_since(began)],
        }
        steps_ms, began = [], time.perf_counter()
        for _ in self.steps(encoded):
            steps_ms.append(milliseconds_since(began))
            began = time.perf_counter()
        times |= {"prefill": steps_ms[:1], "tokens": [float(len(steps_ms))]}
        return times | ({"step": steps_ms[1:]} if steps_ms[1:] else {})

    @while_open
    def timed_batch(self, images: Sequence[ImageInput]) -> Times:
        """See `Task`: preprocess, encode, decode, total."""
        began = time.perf_counter()
        encoded = list(self._images.encode_many(images))
        captions = self._caption_encoded(encoded, [False] * len(encoded), None, _AS_BUNDLED)
        total_ms = milliseconds_since(began)
        timing = captions[0].timing_ms
        return {
            "total": [total_ms],
            "preprocess": [timing.preprocess],
            "encode": [timing.encode],
            "decode": [timing.decode],
            # The end token is generated too.
            "tokens": [1 + sum(len(caption.token_ids) for caption in captions) / len(captions)],
        }

    @while_open
    def steps(self, encoded: EncodedImage, max_new_tokens: int | None = None) -> Iterator[GreedyStep]:
        """The tokens of a greedy caption one by one, as the profiler times them."""
        settings = self._call_settings(encoded.images, None, DecodingOptions(beams=1, max_new_tokens=max_new_tokens))
        return greedy_steps(self._generator.decoder, self._context(encoded.tensors, settings), settings.decoding)

    @while_open
    def forced_logits(self, encoded: EncodedImage, token_ids: Sequence[int]) -> NDArray[np.float32]:
        """Logits float32 `[len(token_ids) + 1, vocabulary]` along `token_ids`, a step at a time with the cache."""
        settings = self._call_settings(encoded.images, None, DecodingOptions(beams=1))
        context = self._context(encoded.tensors, settings)
        return self._generator.forced_logits(context, settings.decoding.prompt_token_ids, token_ids)

    def _generate(
        self, encoded: Sequence[EncodedImage], prompt: str | None, options: DecodingOptions
    ) -> list[tuple[tuple[TokenSequence, ...], tuple[str, ...]]]:
        """What is generated for every image, and as text; those that are cut alike, with the same prompt, in one run.

        Ids begin with those of the prefix.
        """
        groups: dict[PromptImages, list[int]] = {}
        for row, one in enumerate(encoded):
            groups.setdefault(one.images, []).append(row)
        generated: dict[int, tuple[tuple[TokenSequence, ...], tuple[str, ...]]] = {}
        for images, rows in groups.items():
            settings = self._call_settings(images, prompt, options)
            if len(rows) == 1:
                context = self._begun(encoded[rows[0]], settings)
            else:
                context = self._context(concatenate([encoded[row] for row in rows]), settings)
            best = self._generator.generate_best(
                context, settings.decoding, options.sampling, settings.stop, options.n_best
            )
            for row, sequences in zip(rows, best, strict=True):
                if settings.prefix_ids:
                    sequences = tuple(one.after(settings.prefix_ids) for one in sequences)
                generated[row] = sequences, tuple(self._text(one, settings, options) for one in sequences)
        return [generated[row] for row in range(len(encoded))]

    def _text(self, sequence: TokenSequence, settings: _CallSettings, options: DecodingOptions) -> str:
        return before_stop(self._codec.decode((*settings.shown_ids, *sequence.token_ids)), options.stop)

    def _call_settings(self, images: PromptImages, prompt: str | None, options: DecodingOptions) -> _CallSettings:
        ids = None if prompt is None else self._codec.encode_prompt(prompt, images)
        return self._known(images, ids, options)

    def _begun(self, image: EncodedImage, settings: _CallSettings) -> Mapping[str, Tensor]:
        """What the decoder attends to, for one image, with what is kept of its prompt."""
        if self._texts is not None:
            return self._context(image.tensors, settings)
        ids = settings.decoding.prompt_token_ids
        return self._generator.begun(image, ids, self._codec.image_end(ids))

    def _context(self, images: Mapping[str, Tensor], settings: _CallSettings) -> Mapping[str, Tensor]:
        """What the decoder attends to, for all `images` of a batch."""
        if self._texts is None:
            return images
        batch = len(next(iter(images.values())))
        return self._texts.read(images, [settings.read_ids] * batch)


def _call_settings(
    codec: TextCodec,
    bundled: Decoding,
    has_reader: bool,
    images: PromptImages,
    prompt_ids: tuple[int, ...] | None,
    options: DecodingOptions,
) -> _CallSettings:
    """The settings of one call with a prompt, or with that of the bundle; it depends on nothing else."""
    ids = codec.encode_prompt(None, images) if prompt_ids is None else prompt_ids
    prefix = () if options.prefix is None else codec.encode_prefix(options.prefix)
    read, fed = (ids, ()) if has_reader else ((), ids)
    decoding = options.apply_to(bundled, (*fed, *prefix))
    shown = bundled.shown_prompt(is_followed=bool(fed))
    stop = stop_at(lambda ids: codec.decode((*shown, *prefix, *ids)), options.stop)
    return _CallSettings(decoding, read, shown, prefix, stop)


def _caption(best: Sequence[TokenSequence], texts: Sequence[str], timing: CaptionTiming) -> Caption:
    scored = tuple(
        ScoredText(text, one.token_ids, sum(one.log_probs) / len(one.log_probs), one.score)
        for text, one in zip(texts, best, strict=True)
    )
    return Caption(scored[0].text, scored[0].token_ids, scored[0].score, timing, scored if len(scored) > 1 else ())


def _raised(captions: Iterator[Caption | ImageError]) -> Iterator[Caption]:
    for number, caption in enumerate(captions, 1):
        if isinstance(caption, ImageError):
            raise ImageError(f"image {number}: {caption}") from caption
        yield caption
