"""What decoding gives: the token ids that a row generated, and how probable they were."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

__all__ = ["Sequence", "sequences_of"]


@dataclass(frozen=True)
class Sequence:
    """What one row generated.

    token_ids: without prompt and end token.
    log_probs: the model's own natural log-probability of each, the end token's last; where the limit came before an
        end token, as long as `token_ids`.
    score: what the search went by: after beam search the sum of the log-probabilities, processed, over their number to
        the power of the length penalty; after greedy decoding their mean.
    """

    token_ids: tuple[int, ...]
    log_probs: tuple[float, ...]
    score: float

    def after(self, prefix_ids: tuple[int, ...]) -> Sequence:
        """The same with ids before its own, which say nothing of how probable it is."""
        return replace(self, token_ids=prefix_ids + self.token_ids) if prefix_ids else self


def sequences_of(
    token_ids: NDArray[np.int64], log_probs: NDArray[np.float32], end_token_ids: Collection[int]
) -> list[Sequence]:
    """A greedily decoded batch, int64 and float32 `[batch, steps]`, as rows that stop at their first end token."""
    sequences = []
    for ids, row in zip(token_ids.tolist(), log_probs.tolist(), strict=True):
        length = 0
        # Right after a graph has run, a generator in place of this loop would take twice as long.
        while length < len(ids) and ids[length] not in end_token_ids:
            length += 1
        scored = tuple(row[: length + 1])
        sequences.append(Sequence(tuple(ids[:length]), scored, sum(scored) / len(scored)))
    return sequences
