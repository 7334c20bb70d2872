"""Text from the outputs of an encoder: in one run where the bundle has a graph that suffices, else step by step.

For captioning and for answers that are generated alike.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from xattn_runtime.bundle.decoding import Decoding
from xattn_runtime.bundle.folder import Bundle
from xattn_runtime.bundle.manifest import CacheForm
from xattn_runtime.errors import BundleError
from xattn_runtime.execution.forking import tell_after_fork
from xattn_runtime.execution.session import (
    GraphSession,
    HeldGraph,
    SessionSettings,
    Tensor,
    hold_graph,
    open_session,
)
from xattn_runtime.generate.cache import Cache
from xattn_runtime.generate.decoder import DecoderStep
from xattn_runtime.generate.loop import GreedyLoop
from xattn_runtime.generate.options import Sampling, Stop
from xattn_runtime.generate.search import generate_best
from xattn_runtime.generate.sequence import Sequence as TokenSequence
from xattn_runtime.tasks.shared.image_encoder import EncodedImage, check_key_values
from xattn_runtime.tasks.shared.kept import PromptBudget

__all__ = ["TextGenerator", "open_generation"]

_LOOP = "generator"
_IMAGE_TOKENS, _GRIDS = "image_tokens", "image_grids"


def open_generation(bundle: Bundle, settings: SessionSettings) -> GraphSession:
    """The graph that plain greedy decoding needs: the generator, or where none is there or can be run the decoder.

    Where the image stands in the prompt, it is the decoder: its cache is kept from one prompt to the next.
    Best loaded before any other: while a generator is loaded, its weights are in memory twice.
    """
    is_in_prompt = bundle.manifest.tokenizer.image_layout is not None
    looped = _LOOP in bundle.manifest.graphs and settings.loops and not is_in_prompt
    return open_session(bundle, _LOOP if looped else "decoder", settings)


class TextGenerator:
    """The decoder of a bundle, and its generator if it has one: then the decoder is loaded when it is first needed."""

    def __init__(
        self,
        bundle: Bundle,
        settings: SessionSettings,
        session: GraphSession,
        producer: GraphSession,
        decoding: Decoding,
    ) -> None:
        """`session` is what `open_generation` gave, and `producer` the encoder that gives what is decoded.

        Raises BundleError where a graph does not take what `producer` gives, where it lacks a token that the manifest's
        decoding names, or where the image stands in the text and the manifest says not how.
        """
        self._bundle = bundle
        self._producer = producer
        self._decoding = decoding
        self._loading = threading.Lock()
        self._budget = PromptBudget()
        tell_after_fork(self)
        self._check(session)
        has_loop = session.role == _LOOP
        self._loop = GreedyLoop(session) if has_loop else None
        self._decoder = hold_graph(bundle, "decoder", settings) if has_loop else self._step(session)

    @property
    def decoder(self) -> DecoderStep:
        """The decoder, a step at a time."""
        with self._loading:
            if isinstance(self._decoder, HeldGraph):
                session = self._decoder.open()
                self._check(session)
                self._decoder = self._step(session)
            return self._decoder

    def after_fork(self) -> None:
        """See `Inherited`: a thread that is not here may have been loading the decoder."""
        self._loading = threading.Lock()

    def begun(self, image: EncodedImage, prompt_ids: Sequence[int], length: int) -> dict[str, Tensor]:
        """What is decoded for one image after a prompt whose first `length` tokens, the image's included, are kept.

        They are computed where they are not, and where nothing is to be kept with the image not at all.
        """
        context, ids = dict(image.tensors), tuple(prompt_ids[:length])
        layout = self._bundle.manifest.tokenizer.image_layout
        is_whole = layout is not None and layout.whole_prompt
        if image.prompts is None or is_whole or not 0 < length < len(prompt_ids):
            return context

        def compute() -> Cache:
            return self.read(context, ids)

        return self.decoder.with_past(context, self._budget.cache(image.prompts, ids, compute))

    def read(self, context: Mapping[str, Tensor], token_ids: Sequence[int]) -> Cache:
        """The cache after `token_ids`, which continue `context`."""
        decoder, prompt = self.decoder, self.decoder.prompt(context, token_ids)
        _, past = decoder.logits(prompt, decoder.first_past(context), decoder.cross(context))
        return past.settled()

    def generate(self, context: Mapping[str, Tensor], decoding: Decoding) -> list[TokenSequence]:
        """The sequence for every row of `context`, the output of the encoder; `decoding` as `Decoding.for_call`."""
        return [best[0] for best in self.generate_best(context, decoding)]

    def generate_best(
        self,
        context: Mapping[str, Tensor],
        decoding: Decoding,
        sampling: Sampling | None = None,
        stop: Stop | None = None,
        n_best: int = 1,
    ) -> list[tuple[TokenSequence, ...]]:
        """The same with tokens that are drawn, words to stop at, and the `n_best` sequences of every row."""
        if self._loop is not None and decoding.is_plain and sampling is None and stop is None:
            return [(sequence,) for sequence in self._loop.generate(context, decoding)]
        return generate_best(self.decoder, context, decoding, sampling, stop, n_best)

    def forced_logits(
        self, context: Mapping[str, Tensor], prompt_ids: Sequence[int], token_ids: Sequence[int]
    ) -> NDArray[np.float32]:
        """Logits float32 `[len(token_ids) + 1, vocabulary]` along `token_ids`, a step at a time with the cache."""
        past, cross = self.decoder.first_past(context), self.decoder.cross(context)
        prompt = self.decoder.unread(context, np.array([prompt_ids], np.int64))
        rows = []
        for fed in (prompt, *(np.array([[token_id]], np.int64) for token_id in token_ids)):
            logits, past = self.decoder.logits(fed, past, cross)
            rows.append(logits)
        return np.concatenate(rows)

    def _step(self, session: GraphSession) -> DecoderStep:
        step = DecoderStep(session)
        step.check_ids(self._decoding.generated_ids)
        return step

    def _check(self, session: GraphSession) -> None:
        check_key_values(self._producer, session)
        _check_cache(self._bundle, session)
        _check_layout(self._bundle, self._producer, session)


def _check_cache(bundle: Bundle, decoder: GraphSession) -> None:
    form: CacheForm = "split" if decoder.layers("frozen") else "single"
    if form != bundle.manifest.cache:
        raise BundleError(
            f"{decoder.path}: expected a {bundle.manifest.cache} cache, as the manifest says, found a {form} one; "
            "export it again"
        )


def _check_layout(bundle: Bundle, producer: GraphSession, decoder: GraphSession) -> None:
    layout = bundle.manifest.tokenizer.image_layout
    is_in_text = _IMAGE_TOKENS in decoder.input_shapes
    if is_in_text != (layout is not None):
        raise BundleError(
            f"{decoder.path}: expected {'an' if is_in_text else 'no'} image_layout in the manifest's tokenizer, as the "
            f"decoder takes {'' if is_in_text else 'no '}image_tokens, found {'none' if is_in_text else 'one'}; "
            "export it again"
        )
    if _GRIDS in decoder.input_shapes and (layout is None or layout.merge is None):
        raise BundleError(
            f"{decoder.path}: expected an image_layout with merge in the manifest's tokenizer, as the decoder takes "
            f"{_GRIDS}, found none; export it again"
        )
    tokens = producer.output_shapes[_IMAGE_TOKENS][1] if is_in_text else None
    if layout is not None and isinstance(tokens, int) and tokens != layout.tokens:
        raise BundleError(
            f"{producer.path}: output {_IMAGE_TOKENS}: expected {layout.tokens} tokens, as the manifest's image_layout "
            f"says, found {tokens}; export it again"
        )
