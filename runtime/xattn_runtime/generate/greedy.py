"""Decoding a token at a time with a key/value cache, the best one or one that is drawn, until an end or the limit.

It works on tensors and ids of a whole batch; text, images and timing belong to `tasks/`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from xattn_runtime.bundle.decoding import Decoding
from xattn_runtime.execution.session import Tensor
from xattn_runtime.generate.cache import Cache
from xattn_runtime.generate.decoder import DecoderStep
from xattn_runtime.generate.options import Stop
from xattn_runtime.generate.processors import log_softmax, processed, processors_at
from xattn_runtime.generate.sampling import Sampler
from xattn_runtime.generate.sequence import Sequence

__all__ = ["GreedyStep", "Watch", "greedy", "greedy_steps"]

Watch = Callable[[Cache], None]
"""Takes note of the cache after a step."""


# Of a split cache, the tokens that each step copies: with as many, that costs less than what a step does anyway.
_MOST_UNSETTLED = 64


class GreedyStep(NamedTuple):
    """One token for every row.

    token_ids: int64 `[batch]`, the pad token for rows that ended before.
    log_probs: float32 `[batch]`, 0 for those rows.
    ended: of each row whether it has had its end token, or said enough, with this step or before.
    """

    token_ids: NDArray[np.int64]
    log_probs: NDArray[np.float32]
    ended: list[bool]


def greedy_steps(
    decoder: DecoderStep,
    image: Mapping[str, Tensor],
    decoding: Decoding,
    sampler: Sampler | None = None,
    stop: Stop | None = None,
    watch: Watch | None = None,
) -> Iterator[GreedyStep]:
    """Yield a step as soon as it is computed; at most `decoding.max_new_tokens` of them, end token included.

    `image` holds what the image encoder gave, `[batch, heads, image_tokens, head_width]` each. Where nothing has to be
    done to the scores, the argmax in the graph is taken and no logits are copied out of it. Rows that have ended leave
    the batch once half of it has.

    sampler: draws the tokens; without one the best are taken. stop: ends a row. watch: is given the cache of each step,
        before the step is yielded; it holds everything but the new token.
    """
    cross = decoder.held(decoder.cross(image))
    past = decoder.first_past(image)
    prompt = decoder.prompt(image, decoding.prompt_token_ids)
    batch, prompt_length = prompt.shape
    input_ids = decoder.unread(image, prompt)
    tokens = np.concatenate((prompt, np.zeros((batch, decoding.max_new_tokens), dtype=np.int64)), axis=1)
    rows, ended, ends = np.arange(batch), [False] * batch, frozenset(decoding.end_token_ids)
    is_plain = decoding.is_plain and sampler is None
    for length in range(prompt_length, tokens.shape[1]):
        processors = () if is_plain else processors_at(decoding, length)
        if processors or sampler is not None:
            logits, past = decoder.logits(input_ids, past, cross, hold=True)
            scores = processed(processors, logits, tokens[rows, :length])
            token_ids = scores.argmax(axis=1) if sampler is None else sampler.draw(scores, rows)
            log_probs = np.take_along_axis(log_softmax(logits), token_ids[:, None], axis=1)[:, 0]
        else:
            token_ids, log_probs, past = decoder.next_token(input_ids, past, cross, hold=True)
        if True in ended:
            token_ids, log_probs = _of_batch(token_ids, log_probs, rows, np.array(ended), decoding)
        tokens[:, length] = token_ids
        ended = [done or token_id in ends for done, token_id in zip(ended, token_ids.tolist(), strict=True)]
        if stop is not None:
            generated = tokens[:, prompt_length : length + 1].tolist()
            ended = [done or stop(ids) for done, ids in zip(ended, generated, strict=True)]
        if watch is not None:
            watch(past)
        yield GreedyStep(token_ids, log_probs, ended)
        past = past.settled(_MOST_UNSETTLED if length > prompt_length else 1)
        if True not in ended:
            input_ids = token_ids[:, None]
            continue
        staying = [place for place, row in enumerate(rows.tolist()) if not ended[row]]
        if not staying:
            return
        if 2 * len(staying) <= len(rows) and past.is_here:
            past, cross = past.of_rows(staying), _of_rows(cross, staying)
            rows = rows[staying]
        input_ids = token_ids[rows, None]


def greedy(
    decoder: DecoderStep,
    image: Mapping[str, Tensor],
    decoding: Decoding,
    sampler: Sampler | None = None,
    stop: Stop | None = None,
) -> list[Sequence]:
    """Every row's sequence, decoded to its end."""
    steps = list(greedy_steps(decoder, image, decoding, sampler, stop))
    ids = np.stack([step.token_ids for step in steps], axis=1)
    log_probs = np.stack([step.log_probs for step in steps], axis=1)
    # A row takes part in all steps before which it had not ended.
    lengths = [1 + row.count(False) for row in zip(*(step.ended for step in steps[:-1]), strict=True)] or [1] * len(ids)
    rows = zip(ids.tolist(), log_probs.tolist(), lengths, strict=True)
    return [_sequence(row_ids[:length], row[:length], decoding) for row_ids, row, length in rows]


def _sequence(token_ids: list[int], log_probs: list[float], decoding: Decoding) -> Sequence:
    has_end = token_ids[-1] in decoding.end_token_ids
    return Sequence(tuple(token_ids[: -1 if has_end else None]), tuple(log_probs), sum(log_probs) / len(log_probs))


def _of_batch(
    token_ids: NDArray[np.int64],
    log_probs: NDArray[np.float32],
    rows: NDArray[np.int64],
    ended: NDArray[np.bool_],
    decoding: Decoding,
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """What was chosen for `rows`, for the whole batch, in which some rows have ended before."""
    all_ids = np.full(len(ended), decoding.pad_token_id, dtype=np.int64)
    all_log_probs = np.zeros(len(ended), dtype=np.float32)
    all_ids[rows], all_log_probs[rows] = token_ids, log_probs
    all_ids[ended], all_log_probs[ended] = decoding.pad_token_id, 0
    return all_ids, all_log_probs


def _of_rows(tensors: Mapping[str, Tensor], rows: list[int]) -> dict[str, Tensor]:
    return {name: tensor[rows] for name, tensor in tensors.items()}
