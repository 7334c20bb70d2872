"""A conversation of several turns about images: each turn computes only what is new in it.

The conversation is written as the chat template writes all of it; of its tokens, those that the cache begins with are
not computed again. So the answers are those that the whole conversation, computed anew, would give.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from xattn_runtime.bundle.decoding import Decoding
from xattn_runtime.errors import QuestionError, UserError
from xattn_runtime.execution.session import Tensor
from xattn_runtime.generate.cache import Cache
from xattn_runtime.generate.greedy import greedy_steps
from xattn_runtime.generate.options import DecodingOptions, decoding_options
from xattn_runtime.generate.sampling import Sampler
from xattn_runtime.generate.sequence import Sequence as TokenSequence
from xattn_runtime.preprocess.prompts.chat import Turn
from xattn_runtime.preprocess.text import TextCodec
from xattn_runtime.tasks.answer import Answer, AnswerTiming
from xattn_runtime.tasks.shared.generation import TextGenerator
from xattn_runtime.tasks.shared.image_encoder import EncodedImage, milliseconds_since
from xattn_runtime.tasks.shared.streaming import StreamedToken, TextStream, before_stop, stop_at

__all__ = ["Chat", "ChatParts"]


@dataclass(frozen=True)
class ChatParts:
    """What of a loaded model a conversation needs."""

    codec: TextCodec
    generator: TextGenerator
    decoding: Decoding


@dataclass(frozen=True)
class _State:
    """A conversation so far, and the token ids that `cache` holds; replaced as a whole by every turn."""

    turns: tuple[Turn, ...]
    ids: tuple[int, ...] = ()
    cache: Cache | None = None


@dataclass(frozen=True)
class _ReadyTurn:
    """A question ready to be answered.

    context: what is decoded, with the cache of what is known. decoding: with the conversation so far as its prompt.
    prefix: ids that the answer begins with, as if the model had said them.
    """

    began: _State
    question: Turn
    context: Mapping[str, Tensor]
    decoding: Decoding
    options: DecodingOptions
    prefix: tuple[int, ...]
    parts: ChatParts

    def text(self, ids: Sequence[int]) -> str:
        """What generated tokens say."""
        return self.parts.codec.decode((*self.prefix, *ids))


class Chat:
    """A conversation about one or several images, or a video. A turn begins when the one before has ended.

    turns: what was said so far.
    """

    def __init__(self, parts: Callable[[], ChatParts], image: EncodedImage, system: str | None) -> None:
        """`parts` gives what answers, as long as the model is open; see `VqaTask.chat`."""
        self._parts = parts
        self._image = image
        first = () if system is None else (Turn("system", system),)
        self._state = _State(first)
        # What is wrong with the system prompt, or with a template that takes none, shows now.
        parts().codec.encode_chat((*first, Turn("user", "?")), image.images)

    @property
    def turns(self) -> tuple[Turn, ...]:
        return self._state.turns

    def ask(self, question: str, beams: int | None = None, options: DecodingOptions | None = None) -> Answer:
        """The answer to what is said next; both become a part of the conversation.

        beams, options: of decoding; defaults are those of the bundle.
        Raises QuestionError, or UserError for a conversation that the model has no positions for, and for options that
        are out of range.
        """
        began = time.perf_counter()
        turn = self._begun(question, decoding_options(options, beams))
        is_searched = turn.decoding.beams > 1 or turn.options.n_best > 1
        best = self._searched(turn) if is_searched else self._stepped(turn)
        texts = [before_stop(turn.text(one.token_ids), turn.options.stop) for one in best]
        total_ms = milliseconds_since(began)
        return Answer(
            answer=texts[0],
            confidence=math.exp(sum(best[0].log_probs)),
            top=tuple((text, math.exp(sum(one.log_probs))) for text, one in zip(texts, best, strict=True)),
            unknown_words=(),
            timing_ms=AnswerTiming(0.0, 0.0, total_ms, total_ms),
            token_ids=(*turn.prefix, *best[0].token_ids),
        )

    def stream(self, question: str, options: DecodingOptions | None = None) -> Iterator[StreamedToken]:
        """The tokens of the answer, each as soon as it is computed; their texts together are the answer's.

        It may be stopped at any token: what was said until then is a part of the conversation.
        Raises as `ask` does, before the first token; UserError also for beams, and for several texts.
        """
        options = decoding_options(options)
        for name, value in (("beams", options.beams or 1), ("n_best", options.n_best)):
            if value > 1:
                raise UserError(f"{name}: expected 1, as what is streamed cannot be taken back, found {value}")
        return self._streamed(self._begun(question, options.with_shortcuts(1, None)))

    def _begun(self, question: str, options: DecodingOptions) -> _ReadyTurn:
        parts, state = self._parts(), self._state
        turn = Turn("user", question)
        ids = parts.codec.encode_chat((*state.turns, turn), self._image.images)
        most = parts.decoding.max_positions
        if most is not None and len(ids) >= most:
            raise QuestionError(
                f"question: expected a conversation of at most {most - 1} tokens, its images and all that was said "
                f"included, found {len(ids)}; begin a new chat"
            )
        prefix = () if options.prefix is None else parts.codec.encode_prefix(options.prefix)
        decoding = options.apply_to(parts.decoding, (*ids, *prefix))
        context = self._context(parts, decoding.prompt_token_ids)
        return _ReadyTurn(state, turn, context, decoding, options, prefix, parts)

    def _context(self, parts: ChatParts, ids: tuple[int, ...]) -> Mapping[str, Tensor]:
        """What is decoded: the image, and the cache of all tokens that `ids` begin with and that are computed."""
        known, end = self._state, parts.codec.image_end(ids)
        common = _common(known.ids, ids[:-1])
        cache = None if known.cache is None or common < end else known.cache.begun(common)
        if cache is None:
            return parts.generator.begun(self._image, ids, end)
        return parts.generator.decoder.with_past(self._image.tensors, cache)

    def _searched(self, turn: _ReadyTurn) -> Sequence[TokenSequence]:
        options = turn.options
        stop = stop_at(turn.text, options.stop)
        generator = turn.parts.generator
        (best,) = generator.generate_best(turn.context, turn.decoding, options.sampling, stop, options.n_best)
        known = turn.began
        self._add(turn, best[0].token_ids, known.ids, known.cache)
        return best

    def _stepped(self, turn: _ReadyTurn) -> Sequence[TokenSequence]:
        tokens = list(self._streamed(turn))
        ends = frozenset(turn.decoding.end_token_ids)
        ids = tuple(token.token_id for token in tokens if token.token_id not in ends)
        log_probs = tuple(token.log_prob for token in tokens)
        return (TokenSequence(ids, log_probs, sum(log_probs) / len(log_probs)),)

    def _streamed(self, turn: _ReadyTurn) -> Iterator[StreamedToken]:
        options, decoding = turn.options, turn.decoding
        sampler = None if options.sampling is None else Sampler(options.sampling, 1)
        text = TextStream(turn.text, decoding.end_token_ids, options.stop)
        last_cache: list[Cache] = []

        def watch(cache: Cache) -> None:
            last_cache[:] = [cache]

        steps = greedy_steps(
            turn.parts.generator.decoder, turn.context, decoding, sampler, stop_at(turn.text, options.stop), watch
        )
        said: list[int] = []
        try:
            for number, step in enumerate(steps, 1):
                last = bool(step.ended[0]) or number == decoding.max_new_tokens
                said.append(int(step.token_ids[0]))
                yield text.add(said[-1], float(step.log_probs[0]), last=last)
        finally:
            if said:
                ends = frozenset(decoding.end_token_ids)
                read = (*decoding.prompt_token_ids, *said[:-1])
                self._add(turn, [one for one in said if one not in ends], read, last_cache[0].here())

    def _add(self, turn: _ReadyTurn, token_ids: Sequence[int], ids: tuple[int, ...], cache: Cache | None) -> None:
        """Make question and answer a part of the conversation, unless another turn has become one meanwhile."""
        if self._state is turn.began:
            answer = Turn("assistant", before_stop(turn.text(token_ids), turn.options.stop))
            self._state = _State((*turn.began.turns, turn.question, answer), ids, cache)


def _common(known: Sequence[int], ids: Sequence[int]) -> int:
    """How many ids both begin with."""
    for place, (one, other) in enumerate(zip(known, ids, strict=False)):
        if one != other:
            return place
    return min(len(known), len(ids))
