"""Decoding a token at a time with a key/value cache, the best one or one that is drawn, until an end or the limit.

It works on tensors and ids of a whole batch; text, pictures and timing belong to `tasks/`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from xattn_runtime.generate.decoder import DecoderStep, GreedyToken
from xattn_runtime.generate.options import Stop
from xattn_runtime.generate.processors import log_softmax, processed, processors_at
from xattn_runtime.generate.sampling import Sampler
from xattn_runtime.generate.sequence import Sequence
from xattn_runtime.generate.settings import Decoding
from xattn_runtime.session import Tensor

__all__ = ["GreedyStep", "greedy", "greedy_steps"]


@dataclass(frozen=True)
class GreedyStep:
    """One token for every row.

    token_ids: int64 `[batch]`, the pad token for rows that ended before.
    log_probs: float32 `[batch]`, 0 for those rows.
    ended: bool `[batch]`, rows that have had their end token, or said enough, with this step or before.
    """

    token_ids: NDArray[np.int64]
    log_probs: NDArray[np.float32]
    ended: NDArray[np.bool_]


def greedy_steps(
    decoder: DecoderStep,
    image: Mapping[str, Tensor],
    decoding: Decoding,
    sampler: Sampler | None = None,
    stop: Stop | None = None,
) -> Iterator[GreedyStep]:
    """Yield a step as soon as it is computed; at most `decoding.max_new_tokens` of them, end token included.

    `image` holds what the image encoder gave, `[batch, heads, image_tokens, head_width]` each. Where nothing has to be
    done to the scores, the argmax in the graph is taken and no logits are copied out of it. Rows that have ended leave
    the batch once half of it has.

    sampler: draws the tokens; without one the best are taken. stop: ends a row.
    """
    cross = decoder.held(decoder.cross(image))
    past = decoder.first_past(image)
    input_ids = decoder.prompt(image, decoding.prompt_token_ids)
    batch, prompt_length = input_ids.shape
    tokens = np.concatenate((input_ids, np.zeros((batch, decoding.max_new_tokens), dtype=np.int64)), axis=1)
    rows, ended, ended_rows = np.arange(batch), np.zeros(batch, dtype=np.bool_), 0
    is_plain = decoding.is_plain and sampler is None
    for length in range(prompt_length, tokens.shape[1]):
        processors = () if is_plain else processors_at(decoding, length)
        if processors or sampler is not None:
            logits, past = decoder.logits(input_ids, past, cross, hold=True)
            scores = processed(processors, logits, tokens[rows, :length])
            chosen = scores.argmax(axis=1) if sampler is None else sampler.draw(scores, rows)
            best = GreedyToken(chosen, np.take_along_axis(log_softmax(logits), chosen[:, None], axis=1)[:, 0])
        else:
            best, past = decoder.next_token(input_ids, past, cross, hold=True)
        step = _step(best, rows, ended, decoding) if ended_rows else _first_step(best, decoding)
        tokens[:, length] = step.token_ids
        if stop is not None:
            generated = tokens[:, prompt_length : length + 1].tolist()
            said = [not done and stop(ids) for done, ids in zip(step.ended, generated, strict=True)]
            step = replace(step, ended=step.ended | said)
        yield step
        ended, ended_rows = step.ended, int(np.count_nonzero(step.ended))
        if ended_rows == batch:
            return
        if ended_rows:
            staying = ~ended[rows]
            if 2 * staying.sum() <= len(rows) and all(isinstance(value, np.ndarray) for value in past.values()):
                past, cross = _of_rows(past, staying), _of_rows(cross, staying)
                rows = rows[staying]
        input_ids = tokens[rows, length : length + 1]


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
    lengths = 1 + sum((~step.ended).astype(np.int64) for step in steps[:-1])
    rows = zip(ids.tolist(), log_probs.tolist(), np.broadcast_to(lengths, len(ids)).tolist(), strict=True)
    return [_sequence(row_ids[:length], row[:length], decoding) for row_ids, row, length in rows]


def _sequence(token_ids: list[int], log_probs: list[float], decoding: Decoding) -> Sequence:
    has_end = token_ids[-1] in decoding.end_token_ids
    return Sequence(tuple(token_ids[: -1 if has_end else None]), tuple(log_probs), sum(log_probs) / len(log_probs))


def _first_step(best: GreedyToken, decoding: Decoding) -> GreedyStep:
    """What `best` means while no row of the batch has ended."""
    return GreedyStep(best.token_ids, best.log_probs, _are_ends(best.token_ids, decoding))


def _step(best: GreedyToken, rows: NDArray[np.int64], ended: NDArray[np.bool_], decoding: Decoding) -> GreedyStep:
    """What `best`, of `rows`, means for the whole batch, in which some rows have ended before."""
    token_ids = np.full(len(ended), decoding.pad_token_id, dtype=np.int64)
    log_probs = np.zeros(len(ended), dtype=np.float32)
    token_ids[rows], log_probs[rows] = best.token_ids, best.log_probs
    token_ids[ended], log_probs[ended] = decoding.pad_token_id, 0
    return GreedyStep(token_ids, log_probs, ended | _are_ends(token_ids, decoding))


def _are_ends(token_ids: NDArray[np.int64], decoding: Decoding) -> NDArray[np.bool_]:
    first, *others = decoding.end_token_ids
    found: NDArray[np.bool_] = token_ids == first
    for end_id in others:
        found |= token_ids == end_id
    return found


def _of_rows(tensors: Mapping[str, Tensor], kept: NDArray[np.bool_]) -> dict[str, Tensor]:
    return {name: tensor[kept] for name, tensor in tensors.items()}
