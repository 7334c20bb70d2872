"""Greedy decoding with a key/value cache: at every step the best token, until an end token or the limit.

It works on tensors and ids of a whole batch; text, pictures and timing belong to `tasks/`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from xattn_runtime.generate.decoder import DecoderStep, GreedyToken
from xattn_runtime.generate.processors import Scores, log_softmax, processed, processors_at
from xattn_runtime.generate.sequence import Sequence, sequences_of
from xattn_runtime.generate.settings import Decoding
from xattn_runtime.session import Tensor

__all__ = ["GreedyStep", "greedy", "greedy_steps"]


@dataclass(frozen=True)
class GreedyStep:
    """One token for every row.

    token_ids: int64 `[batch]`, the pad token for rows that ended before.
    log_probs: float32 `[batch]`, 0 for those rows.
    ended: bool `[batch]`, rows that have had their end token, with this step or before.
    """

    token_ids: NDArray[np.int64]
    log_probs: NDArray[np.float32]
    ended: NDArray[np.bool_]


def greedy_steps(decoder: DecoderStep, image: Mapping[str, Tensor], decoding: Decoding) -> Iterator[GreedyStep]:
    """Yield a step as soon as it is computed; at most `decoding.max_new_tokens` of them, end token included.

    `image` holds what the image encoder gave, `[batch, heads, image_tokens, head_width]` each. Where nothing has to be
    done to the scores, the argmax in the graph is taken and no logits are copied out of it.
    """
    cross = decoder.held(decoder.cross(image))
    past = decoder.first_past(image)
    tokens = decoder.prompt(image, decoding.prompt_token_ids)
    input_ids = tokens
    ended = np.zeros(len(tokens), dtype=np.bool_)
    end_ids = np.array(decoding.end_token_ids)[:, None]
    for _ in range(decoding.max_new_tokens):
        processors = processors_at(decoding, tokens.shape[1])
        if processors:
            logits, past = decoder.logits(input_ids, past, cross, hold=True)
            best = _best(logits, processed(processors, logits, tokens))
        else:
            best, past = decoder.next_token(input_ids, past, cross, hold=True)
        step = _step(best, ended, decoding.pad_token_id, end_ids)
        yield step
        ended = step.ended
        if ended.all():
            return
        input_ids = step.token_ids[:, None]
        tokens = np.concatenate((tokens, input_ids), axis=1)


def greedy(decoder: DecoderStep, image: Mapping[str, Tensor], decoding: Decoding) -> list[Sequence]:
    """Every row's sequence, decoded to its end."""
    steps = list(greedy_steps(decoder, image, decoding))
    ids = np.stack([step.token_ids for step in steps], axis=1)
    log_probs = np.stack([step.log_probs for step in steps], axis=1)
    return sequences_of(ids, log_probs, decoding.end_token_ids)


def _step(best: GreedyToken, ended: NDArray[np.bool_], pad_token_id: int, end_ids: NDArray[np.int64]) -> GreedyStep:
    """What `best` means where some rows may have ended before."""
    token_ids, log_probs = best.token_ids, best.log_probs
    if ended.any():
        token_ids = np.where(ended, pad_token_id, token_ids)
        log_probs = np.where(ended, np.float32(0), log_probs)
    return GreedyStep(token_ids, log_probs, ended | (token_ids == end_ids).any(axis=0))


def _best(logits: NDArray[np.float32], scores: Scores) -> GreedyToken:
    """The tokens of the best scores, with the model's own log-probabilities."""
    token_ids = scores.argmax(axis=1)
    return GreedyToken(token_ids, np.take_along_axis(log_softmax(logits), token_ids[:, None], axis=1)[:, 0])
