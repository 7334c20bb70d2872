"""Captioning: a picture to a sentence.

It joins preprocessing, image encoder, decoding and tokenizer of one bundle; it knows nothing of the model.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from xattn_runtime.bundle import Bundle
from xattn_runtime.errors import BundleError
from xattn_runtime.generate.greedy import GreedyStep, greedy_steps
from xattn_runtime.generate.sequence import Sequence as TokenSequence
from xattn_runtime.generate.settings import Decoding
from xattn_runtime.preprocess.text import TextCodec
from xattn_runtime.preprocess.tokenizer import WHOLE, Grid
from xattn_runtime.session import SessionSettings, Tensor
from xattn_runtime.tasks.encoding import (
    EncodedImage,
    ImageEncoder,
    concatenate,
    milliseconds_since,
    session_settings,
)
from xattn_runtime.tasks.generation import TextGenerator, open_generation
from xattn_runtime.tasks.reading import open_reader

if TYPE_CHECKING:
    from xattn_runtime.preprocess.image import ImageInput

__all__ = ["Caption", "CaptionTask", "CaptionTiming"]


@dataclass(frozen=True)
class CaptionTiming:
    """Milliseconds of each stage; 0 for what an `EncodedImage` had behind it."""

    preprocess: float
    encode: float
    decode: float
    total: float


@dataclass(frozen=True)
class Caption:
    """A caption. `score` is the mean natural log-probability a generated token, the end token included.

    It is the model's own, whatever the bundle's settings add to or take from the scores that decoding goes by.
    """

    text: str
    token_ids: tuple[int, ...]
    score: float
    timing_ms: CaptionTiming


@dataclass(frozen=True)
class _Asked:
    """The settings of one call, and the prompt's ids where a text encoder reads it rather than the decoder."""

    decoding: Decoding
    read_ids: tuple[int, ...]


class CaptionTask:
    """A captioning bundle, loaded. Safe to call from one thread at a time."""

    def __init__(self, bundle: Bundle, provider: str | SessionSettings = "cpu", threads: int | None = None) -> None:
        """Load the graphs of `bundle`; `threads` within an operator, by default the cores, at most 4.

        Raises BundleError, ProviderError or DependencyError.
        """
        decoding = bundle.manifest.decoding
        if decoding is None:
            raise BundleError(f"{bundle.path}: expected a bundle for caption, found one for {bundle.manifest.task}")
        self.bundle = bundle
        self.settings = session_settings(provider, threads, bundle)
        self._decoding = decoding
        session = open_generation(bundle, self.settings)
        self._encoder = ImageEncoder(bundle, self.settings)
        self._reader = open_reader(bundle, self.settings, self._encoder.session)
        giver = self._encoder.session if self._reader is None else self._reader.session
        self._generator = TextGenerator(bundle, self.settings, session, giver, decoding)
        self._codec = TextCodec(bundle.file(bundle.manifest.tokenizer.file), bundle.manifest.tokenizer)

    def encode(self, image: ImageInput) -> EncodedImage:
        """The image, encoded once for any number of calls; ImageError where it cannot be used."""
        return self._encoder.encode(image)

    def steps(self, encoded: EncodedImage, max_new_tokens: int | None = None) -> Iterator[GreedyStep]:
        """The tokens of a greedy caption one by one, as they are computed."""
        asked = self._asked(encoded.grid, None, None, max_new_tokens)
        return greedy_steps(self._generator.decoder, self._context(encoded.tensors, asked), asked.decoding)

    def caption(
        self,
        image: ImageInput | EncodedImage,
        prompt: str | None = None,
        beams: int | None = None,
        max_new_tokens: int | None = None,
    ) -> Caption:
        """The caption of one image; what is not given is as the bundle says.

        prompt: text that the caption goes on from, or that says what is asked for; it is not part of the caption.
        beams: sequences searched at once; 1 is greedy decoding.
        max_new_tokens: end token included; at most what the model has positions for.
        Raises ImageError, or UserError for a prompt that cannot be used or a number out of range.
        """
        # What is wrong with them shows before the image is encoded.
        asked = self._asked(WHOLE, prompt, beams, max_new_tokens)
        began = time.perf_counter()
        known = isinstance(image, EncodedImage)
        encoded = image if isinstance(image, EncodedImage) else self.encode(image)
        decode_began = time.perf_counter()
        if encoded.grid != WHOLE:
            asked = self._asked(encoded.grid, prompt, beams, max_new_tokens)
        sequence = self._generator.generate(self._context(encoded.tensors, asked), asked.decoding)[0]
        text = self._codec.decode(sequence.token_ids)
        timing = CaptionTiming(
            preprocess=0.0 if known else encoded.preprocess_ms,
            encode=0.0 if known else encoded.encode_ms,
            decode=milliseconds_since(decode_began),
            total=milliseconds_since(began),
        )
        return _caption(text, sequence, timing)

    def caption_batch(
        self,
        images: Sequence[ImageInput],
        prompt: str | None = None,
        beams: int | None = None,
        max_new_tokens: int | None = None,
    ) -> list[Caption]:
        """The captions of several images, decoded together; each one's times are its share of the whole."""
        if not images:
            return []
        self._asked(WHOLE, prompt, beams, max_new_tokens)
        encoded = list(self._encoder.encode_many(images))
        began = time.perf_counter()
        sequences = self._generate(encoded, prompt, beams, max_new_tokens)
        texts = [self._codec.decode(sequence.token_ids) for sequence in sequences]
        decode_ms = milliseconds_since(began) / len(images)
        return [
            _caption(
                text,
                sequence,
                CaptionTiming(
                    one.preprocess_ms, one.encode_ms, decode_ms, one.preprocess_ms + one.encode_ms + decode_ms
                ),
            )
            for text, sequence, one in zip(texts, sequences, encoded, strict=True)
        ]

    def forced_logits(self, encoded: EncodedImage, token_ids: Sequence[int]) -> NDArray[np.float32]:
        """Logits float32 `[len(token_ids) + 1, vocabulary]` along given tokens, a step at a time with the cache."""
        asked = self._asked(encoded.grid, None, None, None)
        context = self._context(encoded.tensors, asked)
        return self._generator.forced_logits(context, asked.decoding.prompt_token_ids, token_ids)

    def _generate(
        self, encoded: Sequence[EncodedImage], prompt: str | None, beams: int | None, max_new_tokens: int | None
    ) -> list[TokenSequence]:
        """What is generated for every image; those that are cut alike, and so have the same prompt, in one run."""
        found: dict[int, TokenSequence] = {}
        for grid in dict.fromkeys(one.grid for one in encoded):
            rows = [row for row, one in enumerate(encoded) if one.grid == grid]
            asked = self._asked(grid, prompt, beams, max_new_tokens)
            context = self._context(concatenate([encoded[row] for row in rows]), asked)
            found |= zip(rows, self._generator.generate(context, asked.decoding), strict=True)
        return [found[row] for row in range(len(encoded))]

    def _asked(self, grid: Grid, prompt: str | None, beams: int | None, max_new_tokens: int | None) -> _Asked:
        ids = self._codec.encode_prompt(prompt, grid)
        read, fed = ((), ids) if self._reader is None else (ids, ())
        return _Asked(self._decoding.asked(prompt_ids=fed, beams=beams, max_new_tokens=max_new_tokens), read)

    def _context(self, images: Mapping[str, Tensor], asked: _Asked) -> Mapping[str, Tensor]:
        """What the decoder attends to, for all `images` of a batch."""
        if self._reader is None:
            return images
        batch = len(next(iter(images.values())))
        return self._reader.read(images, [asked.read_ids] * batch)


def _caption(text: str, sequence: TokenSequence, timing: CaptionTiming) -> Caption:
    return Caption(text, sequence.token_ids, sum(sequence.log_probs) / len(sequence.log_probs), timing)
