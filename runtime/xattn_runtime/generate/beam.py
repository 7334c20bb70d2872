"""Beam search with a key/value cache: the `beams` best sequences continue, until none can better those that ended.

Rules of choice, ending and scoring are those of Transformers' `_beam_search` in generation/utils.py: at least twice as
many candidates as beams are considered, so that enough are left to continue, and only those among the best `beams` may
end. It works on tensors and ids of a whole batch; no row has to do with another.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from xattn_runtime.bundle.decoding import Decoding
from xattn_runtime.errors import UserError
from xattn_runtime.execution.session import Tensor
from xattn_runtime.generate.cache import Cache
from xattn_runtime.generate.decoder import DecoderStep
from xattn_runtime.generate.options import Stop
from xattn_runtime.generate.processors import log_softmax, processed, processors_at
from xattn_runtime.generate.sequence import Sequence

__all__ = ["beam_search", "beam_search_best"]

_OUT = np.float32(-1e9)
"""The score of what must not be chosen, or added to it."""


@dataclass(frozen=True)
class _Beams:
    """Sequences of every row, best first.

    tokens: int64 `[batch, beams, longest]`, the prompt first. log_probs: float32 `[batch, beams, most new tokens]`, the
    model's own. lengths: int64 `[batch, beams]`, of the generated part. scores: float32 `[batch, beams]`. ended: bool
    `[batch, beams]`.
    """

    tokens: NDArray[np.int64]
    log_probs: NDArray[np.float32]
    lengths: NDArray[np.int64]
    scores: NDArray[np.float32]
    ended: NDArray[np.bool_]

    def take(self, order: NDArray[np.int64]) -> _Beams:
        """A copy of those at `order`, int64 `[batch, taken]`."""
        rows = np.arange(order.shape[0])[:, None]
        return _Beams(*(value[rows, order] for value in self._values()))

    def beside(self, other: _Beams) -> _Beams:
        """These, then those of `other`."""
        pairs = zip(self._values(), other._values(), strict=True)
        return _Beams(*(np.concatenate(pair, axis=1) for pair in pairs))

    def _values(self) -> tuple[NDArray[Any], ...]:
        return self.tokens, self.log_probs, self.lengths, self.scores, self.ended


def beam_search(decoder: DecoderStep, image: Mapping[str, Tensor], decoding: Decoding) -> list[Sequence]:
    """The best sequence of every row; see `beam_search_best`."""
    return [best[0] for best in beam_search_best(decoder, image, decoding, 1)]


def beam_search_best(
    decoder: DecoderStep, image: Mapping[str, Tensor], decoding: Decoding, n_best: int, stop: Stop | None = None
) -> list[tuple[Sequence, ...]]:
    """The `n_best` sequences of every row, or as many as ended, the best first. `stop` ends a sequence.

    `image` holds what the image encoder gave, `[batch, heads, image_tokens, head_width]` each. The prompt runs once a
    row; only then are cache and cross keys and values repeated for every beam.
    Raises UserError for more beams than the vocabulary has tokens.
    """
    prompt = decoder.prompt(image, decoding.prompt_token_ids)
    cross = decoder.cross(image)
    logits, past = decoder.logits(decoder.unread(image, prompt), decoder.first_past(image), cross)
    if decoding.beams > logits.shape[1]:
        raise UserError(
            f"beams: expected at most {logits.shape[1]}, the tokens of this model's vocabulary, found {decoding.beams}"
        )
    logits = np.repeat(logits, decoding.beams, axis=0)
    cross, past = _repeated(cross, decoding.beams), past.settled().repeated(decoding.beams)
    running, finished = _start(prompt, decoding)
    improvable = np.ones((len(prompt), 1), dtype=np.bool_)
    for generated in range(1, decoding.max_new_tokens + 1):
        candidates, origins = _candidates(running, logits, decoding, generated, stop)
        finished = _finish(finished, candidates, improvable, decoding, generated)
        candidates = replace(candidates, scores=candidates.scores + _out(candidates.ended))
        order = _best(candidates.scores, decoding.beams)
        running = candidates.take(order)
        improvable &= _can_improve(running, finished, decoding, generated)
        full = decoding.early_stopping is True and finished.ended.all()
        if full or not improvable.any() or candidates.ended.all():
            break
        past = _reordered(past, np.take_along_axis(origins, order, axis=1))
        last = running.tokens[:, :, prompt.shape[1] + generated - 1]
        logits, past = decoder.logits(last.reshape(-1, 1), past, cross)
    return [
        tuple(
            _sequence(finished, row, place, decoding)
            for place in range(n_best)
            if place == 0 or finished.ended[row, place]
        )
        for row in range(len(prompt))
    ]


def _start(prompt: NDArray[np.int64], decoding: Decoding) -> tuple[_Beams, _Beams]:
    """The running beams, all but the first out since they are the same, and as many places for finished ones."""
    batch, beams, most = len(prompt), decoding.beams, decoding.max_new_tokens
    scores = np.full((batch, beams), _OUT)
    finished = _Beams(
        tokens=np.repeat(np.pad(prompt, ((0, 0), (0, most)))[:, None, :], beams, axis=1),
        log_probs=np.zeros((batch, beams, most), dtype=np.float32),
        lengths=np.zeros((batch, beams), dtype=np.int64),
        scores=scores,
        ended=np.zeros((batch, beams), dtype=np.bool_),
    )
    return replace(finished, scores=np.where(np.arange(beams) == 0, np.float32(0), scores)), finished


def _candidates(
    running: _Beams, logits: NDArray[np.float32], decoding: Decoding, generated: int, stop: Stop | None
) -> tuple[_Beams, NDArray[np.int64]]:
    """The best continuations by one token, the `generated`-th, and which running beam each continues."""
    batch, beams = running.scores.shape
    at = len(decoding.prompt_token_ids) + generated - 1
    log_probs = log_softmax(logits)
    scores = processed(processors_at(decoding, at), log_probs, running.tokens[:, :, :at].reshape(-1, at))
    totals = (scores.reshape(batch, beams, -1) + running.scores[:, :, None]).reshape(batch, -1)
    places = _best(totals, max(2, 1 + len(decoding.end_token_ids)) * beams)
    origins, token_ids = np.divmod(places, logits.shape[1])
    candidates = running.take(origins)
    candidates.tokens[:, :, at] = token_ids
    candidates.log_probs[:, :, generated - 1] = np.take_along_axis(log_probs.reshape(batch, -1), places, axis=1)
    ended = np.isin(token_ids, decoding.end_token_ids) | (generated == decoding.max_new_tokens)
    if stop is not None:
        generated_ids = candidates.tokens[:, :, at + 1 - generated : at + 1]
        ended |= np.array([[stop(ids) for ids in row] for row in generated_ids.tolist()])
    candidates = replace(
        candidates,
        lengths=np.full_like(origins, generated),
        scores=np.take_along_axis(totals, places, axis=1),
        ended=ended,
    )
    return candidates, origins


def _finish(
    finished: _Beams, candidates: _Beams, improvable: NDArray[np.bool_], decoding: Decoding, generated: int
) -> _Beams:
    """The best of those finished before and those that end now, by scores that the length is taken out of."""
    beams = decoding.beams
    ended = candidates.ended & (np.arange(candidates.ended.shape[1]) < beams)
    closed = ~improvable
    if decoding.early_stopping is True:
        closed |= finished.ended.all(axis=1, keepdims=True)
    scores = candidates.scores / np.float32(generated**decoding.length_penalty) + _out(closed) + _out(~ended)
    together = finished.beside(replace(candidates, scores=scores, ended=ended))
    return together.take(_best(together.scores, beams))


def _can_improve(running: _Beams, finished: _Beams, decoding: Decoding, generated: int) -> NDArray[np.bool_]:
    """For every row, `[batch, 1]`, whether its best running beam may come to beat a finished one."""
    longest = decoding.early_stopping == "never" and decoding.length_penalty > 0
    length = decoding.max_new_tokens if longest else generated
    hoped = running.scores[:, :1] / np.float32(length**decoding.length_penalty)
    worst = np.where(finished.ended, finished.scores.min(axis=1, keepdims=True), _OUT)
    improvable: NDArray[np.bool_] = np.any(hoped > worst, axis=1, keepdims=True)
    return improvable


def _out(barred: NDArray[np.bool_]) -> NDArray[np.float32]:
    return np.where(barred, _OUT, np.float32(0))


def _best(scores: NDArray[np.float32], count: int) -> NDArray[np.int64]:
    """Where the `count` highest scores of every row are, the highest first; int64 `[batch, count]`."""
    count = min(count, scores.shape[1])
    places = np.sort(np.argpartition(-scores, count - 1, axis=1)[:, :count], axis=1)
    order = np.argsort(-np.take_along_axis(scores, places, axis=1), axis=1, kind="stable")
    return np.take_along_axis(places, order, axis=1)


def _repeated(tensors: Mapping[str, Tensor], beams: int) -> dict[str, Tensor]:
    return {name: np.repeat(tensor, beams, axis=0) for name, tensor in tensors.items()}


def _reordered(past: Cache, origins: NDArray[np.int64]) -> Cache:
    """The cache of every running beam, which is that of the beam it continues; `origins` `[batch, beams]`."""
    batch, beams = origins.shape
    rows = (origins + np.arange(batch)[:, None] * beams).reshape(-1)
    if (rows == np.arange(len(rows))).all():
        return past
    return past.reordered(rows.tolist())


def _sequence(finished: _Beams, row: int, place: int, decoding: Decoding) -> Sequence:
    """The sequence of `row` at `place`, prompt and end token taken off."""
    start, length = len(decoding.prompt_token_ids), int(finished.lengths[row, place])
    token_ids = finished.tokens[row, place, start : start + length].tolist()
    if token_ids and token_ids[-1] in decoding.end_token_ids:
        token_ids.pop()
    log_probs = finished.log_probs[row, place, :length].tolist()
    return Sequence(tuple(token_ids), tuple(log_probs), float(finished.scores[row, place]))
