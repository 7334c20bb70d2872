"""Sentiment: text, speech and frames, any of them missing, to a label and how probable each is.

It joins preprocessing, tokenizer and the one graph of a bundle, and knows nothing of the model in it.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from xattn_runtime.arguments import found
from xattn_runtime.bundle.folder import Bundle
from xattn_runtime.bundle.manifest import GoldenCase
from xattn_runtime.errors import BundleError, UserError
from xattn_runtime.execution.session import SessionSettings, Tensor, open_session
from xattn_runtime.execution.settings import session_settings
from xattn_runtime.json_reader import one_line
from xattn_runtime.preprocess.pipeline import Pipeline
from xattn_runtime.preprocess.speech import AudioInput, MelSpec, log_mel, read_audio
from xattn_runtime.preprocess.steps import Step
from xattn_runtime.preprocess.text import TextCodec
from xattn_runtime.tasks.protocol import CaseResult, Task, TaskInput, TaskResult, Times
from xattn_runtime.tasks.shared.closing import Closable, while_open
from xattn_runtime.tasks.shared.image_encoder import milliseconds_since, padded
from xattn_runtime.tasks.shared.several import several_images

if TYPE_CHECKING:
    from xattn_runtime.preprocess.image import ImageInput

__all__ = [
    "Sentiment",
    "SentimentScore",
    "SentimentTask",
    "SentimentTiming",
    "Utterance",
    "UtteranceReader",
    "read_utterance",
]

_MOST_FRAMES = 4096
_NO_WORDS: tuple[str, ...] = ()


@dataclass(frozen=True)
class SentimentScore:
    """A label and how probable the model finds it."""

    label: str
    probability: float


@dataclass(frozen=True)
class SentimentTiming:
    """Milliseconds of each stage."""

    preprocess: float
    decide: float
    total: float


@dataclass(frozen=True)
class Sentiment:
    """All labels, the most probable first.

    modalities: those it was computed from, of `text`, `speech` and `frames`. unknown_words: of the text.
    """

    label: str
    confidence: float
    scores: tuple[SentimentScore, ...]
    modalities: tuple[str, ...]
    unknown_words: tuple[str, ...]
    timing_ms: SentimentTiming

    def to_dict(self) -> dict[str, Any]:
        """As JSON values."""
        return {
            "sentiment": self.label,
            "confidence": self.confidence,
            "scores": [asdict(score) for score in self.scores],
            "modalities": list(self.modalities),
            "timing_ms": asdict(self.timing_ms),
        }


@dataclass(frozen=True)
class Utterance:
    """An utterance, as far as it is known.

    audio: a WAV file, or samples and their rate. log_mel: in its place, the spectrogram `[frames, bands]` of them.
    frames: images of the speaker.
    """

    text: str | None = None
    audio: AudioInput | None = None
    frames: Iterable[ImageInput] | None = None
    log_mel: NDArray[np.float32] | None = None

    @property
    def modalities(self) -> tuple[str, ...]:
        """What it has of `text`, `speech` and `frames`."""
        has = {
            "text": self.text is not None,
            "speech": self.audio is not None or self.log_mel is not None,
            "frames": self.frames is not None and not (isinstance(self.frames, list | tuple) and not self.frames),
        }
        return tuple(name for name, is_known in has.items() if is_known)


class UtteranceReader:
    """Utterances to the tensors that the graph of a bundle takes."""

    def __init__(self, codec: TextCodec, speech: MelSpec, steps: Sequence[Step], longest: int) -> None:
        """`steps` prepare a frame; `longest`: most frames."""
        self._codec, self._speech, self._longest = codec, speech, longest
        self._pipeline = Pipeline(tuple(steps))

    def __call__(self, utterance: Utterance) -> tuple[dict[str, Tensor], tuple[str, ...]]:
        """The inputs in a batch of 1, and the words of the text that the model does not know.

        A missing modality is one token that its mask leaves out.

        Raises:
            UserError: nothing at all.
            QuestionError, AudioError, ImageError: a part that cannot be used.
        """
        if not isinstance(utterance, Utterance):
            raise UserError(f"utterance: expected an Utterance, found {found(utterance)}")
        if not utterance.modalities:
            raise UserError("expected a text, speech or frames, found none of them; give one at least")
        ids, unknown = padded([[0]]), _NO_WORDS
        if utterance.text is None:
            ids["attention_mask"][:] = 0
        else:
            encoded = self._codec.encode_question(utterance.text, kind="text")
            ids, unknown = padded([encoded.ids]), encoded.unknown_words
        frames = self._frames(() if utterance.frames is None else several_images(utterance.frames, "frames"))
        return {**ids, **self._sound(utterance), **frames}, unknown

    def _sound(self, utterance: Utterance) -> dict[str, Tensor]:
        spectrogram = utterance.log_mel
        if utterance.audio is not None:
            spectrogram = log_mel(*read_audio(utterance.audio, self._speech), self._speech)
        if spectrogram is None:
            spectrogram = np.zeros((1, self._speech.bands), dtype=np.float32)
        mask = np.full((1, len(spectrogram)), "speech" in utterance.modalities, dtype=np.int64)
        return {"log_mel": spectrogram[None], "log_mel_mask": mask}

    def _frames(self, frames: Iterable[ImageInput]) -> dict[str, Tensor]:
        """Of more frames than the model takes, as many as it takes, at even distances; each as it is when given."""
        if isinstance(frames, Sequence | np.ndarray):
            seen = [self._pipeline(frames[place]) for place in self._places(len(frames))]
        else:
            every = [self._pipeline(frame) for frame in islice(frames, _MOST_FRAMES + 1)]
            if len(every) > _MOST_FRAMES:
                raise UserError(f"frames: expected at most {_MOST_FRAMES}, found more; choose some in a list")
            seen = [every[place] for place in self._places(len(every))]
        values = np.stack(seen) if seen else np.zeros((1, 3, *self._pipeline.size_px), dtype=np.float32)
        is_known = int(bool(seen))
        return {"frame_values": values[None], "frame_mask": np.full((1, len(values)), is_known, dtype=np.int64)}

    def _places(self, count: int) -> NDArray[np.int64]:
        return np.linspace(0, count - 1, min(count, self._longest)).round().astype(np.int64)


class SentimentTask(Closable, Task):
    """A sentiment bundle, loaded. Calls from several threads at once are safe, and run side by side."""

    def __init__(self, bundle: Bundle, provider: str | SessionSettings = "cpu", threads: int | None = None) -> None:
        """Load the graph of `bundle`; `threads` within an operator, by default the cores, at most 4.

        Raises BundleError, ProviderError or DependencyError.
        """
        manifest = bundle.manifest
        if manifest.speech is None or manifest.longest_frames is None:
            raise BundleError(f"{bundle.path}: expected a bundle for sentiment, found one for {manifest.task}")
        codec = TextCodec(bundle.file(manifest.tokenizer.file), manifest.tokenizer)
        self.bundle = bundle
        self.settings = session_settings(provider, threads, bundle)
        self._read = UtteranceReader(codec, manifest.speech, manifest.image_steps, manifest.longest_frames)
        self._labels = manifest.labels or ()
        self._session = open_session(bundle, "classifier", self.settings)

    @property
    def labels(self) -> tuple[str, ...]:
        """The labels it distinguishes."""
        return self._labels

    @while_open
    def logits(self, utterance: Utterance) -> Tensor:
        """float32 `[labels]`; raises as `rate`."""
        logits: Tensor = self._session.run(["logits"], self._read(utterance)[0])[0][0]
        return logits

    @while_open
    def rate(
        self,
        text: str | None = None,
        audio: AudioInput | None = None,
        frames: Iterable[ImageInput] | None = None,
    ) -> Sentiment:
        """The sentiment of text, speech and frames, at least one of the three.

        Raises:
            UserError: no text, speech or frames.
            QuestionError: the text is empty, too long, or of no known word.
            AudioError: speech of another rate or length, of several channels, or that is no sound.
            ImageError: a frame cannot be used.
        """
        return self.rate_utterance(Utterance(text, audio, frames))

    @while_open
    def rate_utterance(self, utterance: Utterance) -> Sentiment:
        """As `rate`, for an utterance."""
        began = time.perf_counter()
        inputs, unknown = self._read(utterance)
        preprocess_ms = milliseconds_since(began)
        decided = time.perf_counter()
        probabilities = self._session.run(["probabilities"], inputs)[0][0]
        timing = SentimentTiming(preprocess_ms, milliseconds_since(decided), milliseconds_since(began))
        order = np.argsort(-probabilities, kind="stable")
        scores = tuple(SentimentScore(self._labels[i], float(probabilities[i])) for i in order)
        return Sentiment(scores[0].label, scores[0].probability, scores, utterance.modalities, unknown, timing)

    @while_open
    def answer(self, task_input: TaskInput) -> TaskResult:
        """See `Task`: the label of the .npz that stands for an image, with the text."""
        sentiment = self.rate_utterance(_read_input(task_input))
        top = tuple((score.label, score.probability) for score in sentiment.scores)
        return TaskResult(sentiment.label, (), top, sentiment.to_dict())

    @while_open
    def run_case(self, case: GoldenCase) -> CaseResult:
        """See `Task`: the logits of the labels, and the label."""
        logits = self.logits(read_utterance(self.bundle.file(case.image), case.question))
        return CaseResult({"logits": logits}, None if case.text is None else self.labels[int(logits.argmax())])

    @while_open
    def timed(self, image: ImageInput, case: GoldenCase) -> Times:
        """See `Task`: preprocess, decide, total, of the golden case alone."""
        timing = self.rate_utterance(read_utterance(self.bundle.file(case.image), case.question)).timing_ms
        return {stage: [stage_ms] for stage, stage_ms in asdict(timing).items()}


def _read_input(task_input: TaskInput) -> Utterance:
    return read_utterance(Path(str(task_input.image)), task_input.text)


def read_utterance(path: Path | BinaryIO, text: str | None) -> Utterance:
    """The utterance of a golden case: an .npz of `samples` float32 with `rate_hz`, and `frames` uint8 `[n, h, w, 3]`.

    Raises:
        BundleError: another kind of file.
    """
    try:
        with np.load(path, allow_pickle=False) as stored:
            audio = (stored["samples"], int(stored["rate_hz"])) if "samples" in stored else None
            frames = list(stored["frames"]) if "frames" in stored else None
    except Exception as error:  # numpy and zipfile raise half a dozen kinds on damaged input
        raise BundleError(f"{path}: expected an .npz of a sample, found: {one_line(error)}; export it again") from error
    return Utterance(text, audio, frames)
