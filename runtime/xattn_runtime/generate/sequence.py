"""What decoding gives: the token ids that a row generated, and how probable they were."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["Sequence"]


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
