"""Changes to the scores of the next token, each a pure function of scores and of the tokens so far.

Scores are float32 `[rows, vocabulary]`: logits in greedy decoding, log-probabilities in beam search. Tokens are int64
`[rows, length]`, the prompt included. Each function gives new scores. Meaning and order are those of Transformers'
`generate()`: `LogitsProcessor` classes in logits_process.py, `_get_logits_processor` in generation/utils.py.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

from xattn_runtime.bundle.decoding import Decoding

__all__ = [
    "Processor",
    "Scores",
    "Tokens",
    "ban",
    "ban_repeated_ngrams",
    "force",
    "log_softmax",
    "penalize_repetition",
    "processed",
    "processors_at",
]

Scores = NDArray[np.float32]
Tokens = NDArray[np.int64]
Processor = Callable[[Scores, Tokens], Scores]

_NEVER = np.float32(-np.inf)


def processors_at(decoding: Decoding, length: int) -> list[Processor]:
    """What applies to the choice of a token after `length` others, prompt included; often nothing."""
    prompt_length = len(decoding.prompt_token_ids)
    generated = length - prompt_length
    applied: list[Processor] = []
    if decoding.repetition_penalty != 1.0:
        applied.append(partial(penalize_repetition, penalty=decoding.repetition_penalty))
    if 0 < decoding.no_repeat_ngram_size <= length:
        applied.append(partial(ban_repeated_ngrams, size=decoding.no_repeat_ngram_size))
    if bad := set(decoding.bad_token_ids) - set(decoding.end_token_ids):
        applied.append(partial(ban, token_ids=bad))
    if length < decoding.min_length or generated < decoding.min_new_tokens:
        applied.append(partial(ban, token_ids=decoding.end_token_ids))
    if decoding.forced_first_token_id is not None and length == 1:
        applied.append(partial(force, token_id=decoding.forced_first_token_id))
    if decoding.forced_last_token_id is not None and generated == decoding.max_new_tokens - 1:
        applied.append(partial(force, token_id=decoding.forced_last_token_id))
    if decoding.suppressed_token_ids:
        applied.append(partial(ban, token_ids=decoding.suppressed_token_ids))
    first_is_forced = decoding.forced_first_token_id is not None and prompt_length == 1
    if decoding.begin_suppressed_token_ids and generated == int(first_is_forced):
        applied.append(partial(ban, token_ids=decoding.begin_suppressed_token_ids))
    return applied


def processed(processors: Iterable[Processor], scores: Scores, tokens: Tokens) -> Scores:
    """`scores` after all `processors` in turn."""
    for processor in processors:
        scores = processor(scores, tokens)
    return scores


def penalize_repetition(scores: Scores, tokens: Tokens, penalty: float) -> Scores:
    """Divide a positive score by `penalty`, multiply a negative one, of every token that was there before, once."""
    vocabulary = scores.shape[1]
    # A column more for tokens that the decoder takes and cannot give.
    out = np.pad(scores, ((0, 0), (0, 1)))
    seen = np.minimum(tokens, vocabulary)
    values = np.take_along_axis(out, seen, axis=1)
    np.put_along_axis(
        out, seen, np.where(values < 0, values * np.float32(penalty), values / np.float32(penalty)), axis=1
    )
    return out[:, :vocabulary]


def ban_repeated_ngrams(scores: Scores, tokens: Tokens, size: int) -> Scores:
    """Rule out every token that would complete a sequence of `size` tokens that was there before."""
    vocabulary = scores.shape[1]
    windows = sliding_window_view(tokens, size, axis=1)
    begun = tokens[:, tokens.shape[1] + 1 - size :]
    matches = (windows[..., :-1] == begun[:, None, :]).all(axis=-1)
    banned = np.zeros((scores.shape[0], vocabulary + 1), dtype=np.bool_)
    completions = np.where(matches, np.minimum(windows[..., -1], vocabulary), vocabulary)
    np.put_along_axis(banned, completions, True, axis=1)
    return np.where(banned[:, :vocabulary], _NEVER, scores)


def ban(scores: Scores, tokens: Tokens, token_ids: Iterable[int]) -> Scores:
    """Rule out `token_ids`."""
    out = scores.copy()
    out[:, list(token_ids)] = _NEVER
    return out


def force(scores: Scores, tokens: Tokens, token_id: int) -> Scores:
    """Rule out all but `token_id`, whose score becomes 0."""
    out = np.full_like(scores, _NEVER)
    out[:, token_id] = 0
    return out


def log_softmax(logits: NDArray[np.float32]) -> Scores:
    """Natural log-probabilities, float32 `[rows, vocabulary]`."""
    shifted = logits - logits.max(axis=-1, keepdims=True)
    scores: Scores = shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))
    return scores
