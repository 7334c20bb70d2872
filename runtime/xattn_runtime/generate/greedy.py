"""Greedy decoding with a key/value cache: at every step the most probable token, until an end token or the limit.

It works on tensors and ids of a whole batch; text, pictures and timing belong to `tasks/`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from xattn_runtime.generate.decoder import DecoderStep
from xattn_runtime.generate.settings import Decoding
from xattn_runtime.session import Tensor

__all__ = ["GreedyStep", "Sequence", "collect", "greedy", "greedy_steps"]


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


@dataclass(frozen=True)
class Sequence:
    """What one row generated: ids without start and end token, and the log-probability of each, the end token's last.

    Where the limit came before an end token, `log_probs` is as long as `token_ids`.
    """

    token_ids: tuple[int, ...]
    log_probs: tuple[float, ...]


def greedy_steps(
    decoder: DecoderStep, image: Mapping[str, Tensor], decoding: Decoding, max_new_tokens: int
) -> Iterator[GreedyStep]:
    """Yield a step as soon as it is computed; at most `max_new_tokens` of them, end token included.

    `image` holds what the image encoder gave, float32 `[batch, heads, image_tokens, head_width]` each.
    """
    batch = next(iter(image.values())).shape[0]
    input_ids = np.tile(np.array(decoding.prompt_token_ids, dtype=np.int64), (batch, 1))
    past: Mapping[str, Tensor] = decoder.first_past(image)
    cross = decoder.cross(image)
    ended = np.zeros(batch, dtype=np.bool_)
    for _ in range(max_new_tokens):
        result = decoder.run(input_ids, past, cross)
        token_ids = np.where(ended, decoding.pad_token_id, result.next_token)
        log_probs = np.where(ended, np.float32(0), result.next_log_prob)
        ended = ended | np.isin(token_ids, decoding.end_token_ids)
        yield GreedyStep(token_ids, log_probs, ended)
        if ended.all():
            return
        past = result.past
        input_ids = token_ids[:, None]


def greedy(
    decoder: DecoderStep, image: Mapping[str, Tensor], decoding: Decoding, max_new_tokens: int
) -> list[Sequence]:
    """Every row's sequence, decoded to its end."""
    return collect(list(greedy_steps(decoder, image, decoding, max_new_tokens)))


def collect(steps: list[GreedyStep]) -> list[Sequence]:
    """The sequences that `steps`, at least one, are made of."""
    ids = np.stack([step.token_ids for step in steps])
    log_probs = np.stack([step.log_probs for step in steps])
    ended = np.stack([step.ended for step in steps])
    lengths = np.sum(~ended, axis=0)
    return [
        Sequence(
            token_ids=tuple(ids[:length, row].tolist()),
            log_probs=tuple(log_probs[: length + 1, row].tolist()),
        )
        for row, length in enumerate(lengths)
    ]
