from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from xattn_runtime.bundle.decoding import Decoding
from xattn_runtime.generate.processors import (
    ban,
    ban_repeated_ngrams,
    force,
    log_softmax,
    penalize_repetition,
    processed,
    processors_at,
)

PLAIN = Decoding((2,), (3,), 0, 6)
OUT = -np.inf


def scores(*rows: list[float]) -> np.ndarray:
    return np.array(rows, dtype=np.float32)


def tokens(*rows: list[int]) -> np.ndarray:
    return np.array(rows, dtype=np.int64)


def test_repetition_is_penalized_once_whichever_the_sign() -> None:
    given = scores([2, -2, 4, 0], [2, -2, 4, 0])
    found = penalize_repetition(given, tokens([0, 1, 0], [2, 2, 9]), penalty=2.0)
    assert found.tolist() == [[1, -4, 4, 0], [2, -2, 2, 0]]
    assert given.tolist() == [[2, -2, 4, 0], [2, -2, 4, 0]]
    assert found.dtype == np.float32


def test_what_is_ruled_out_stays_so_under_a_penalty() -> None:
    assert penalize_repetition(scores([OUT, 1]), tokens([0, 0]), penalty=2.0).tolist() == [[OUT, 1]]


@pytest.mark.parametrize(
    ("size", "row", "banned"),
    [
        (1, [1, 4, 1], {1, 4}),
        (2, [1, 4, 2, 1], {4}),
        (2, [1, 4, 1, 2, 1], {4, 2}),
        (2, [1, 2, 3], set()),
        (2, [4, 4], {4}),
        (3, [1, 2, 0, 1, 2], {0}),
        (3, [1, 2], set()),
        (2, [1, 9, 3, 1], set()),
    ],
)
def test_no_sequence_comes_twice(size: int, row: list[int], banned: set[int]) -> None:
    if len(row) < size:
        assert not processors_at(replace(PLAIN, no_repeat_ngram_size=size, prompt_token_ids=tuple(row)), len(row))
        return
    found = ban_repeated_ngrams(scores([1, 1, 1, 1, 1]), tokens(row), size)
    assert set(np.flatnonzero(found[0] == OUT)) == banned


def test_rows_have_their_own_sequences() -> None:
    found = ban_repeated_ngrams(scores([1, 1, 1], [1, 1, 1]), tokens([0, 1, 0], [0, 2, 0]), 2)
    assert found.tolist() == [[1, OUT, 1], [1, 1, OUT]]


def test_banning_and_forcing() -> None:
    given = scores([5, 1, 2])
    assert ban(given, tokens([0]), (0, 2)).tolist() == [[OUT, 1, OUT]]
    assert force(given, tokens([0]), 1).tolist() == [[OUT, 0, OUT]]
    assert given.tolist() == [[5, 1, 2]]


def test_log_softmax() -> None:
    found = log_softmax(scores([1000, 1000], [-3, OUT]))
    assert np.allclose(found, [[-np.log(2), -np.log(2)], [0, OUT]])
    assert found.dtype == np.float32


def applied(decoding: Decoding, length: int) -> list[float]:
    """What becomes of six equal scores after a sequence of `length` tokens."""
    row = [*decoding.prompt_token_ids, *[5] * length][:length]
    return processed(processors_at(decoding, length), scores([1] * 6), tokens(row))[0].tolist()


def test_by_default_nothing_is_applied() -> None:
    assert not any(processors_at(PLAIN, length) for length in range(1, 8))
    assert not processors_at(replace(PLAIN, beams=4, length_penalty=2.0, early_stopping=True), 1)


def test_lengths_count_the_prompt_and_new_tokens_do_not() -> None:
    prompt = (2, 5, 5)
    by_length = replace(PLAIN, prompt_token_ids=prompt, min_length=4)
    by_new = replace(PLAIN, prompt_token_ids=prompt, min_new_tokens=2)
    assert [applied(by_length, length)[3] for length in (3, 4)] == [OUT, 1]
    assert [applied(by_new, length)[3] for length in (3, 4, 5)] == [OUT, OUT, 1]


def test_forced_tokens_come_first_and_last() -> None:
    decoding = replace(PLAIN, forced_first_token_id=4, forced_last_token_id=3)
    assert applied(decoding, 1) == [OUT, OUT, OUT, OUT, 0, OUT]
    assert applied(decoding, 2) == [1] * 6
    assert applied(decoding, 6) == [OUT, OUT, OUT, 0, OUT, OUT]
    longer = replace(decoding, prompt_token_ids=(2, 5))
    assert applied(longer, 2) == [1] * 6
    assert applied(longer, 7) == [OUT, OUT, OUT, 0, OUT, OUT]


def test_the_beginning_is_after_a_forced_first_token() -> None:
    decoding = replace(PLAIN, begin_suppressed_token_ids=(1,))
    assert [applied(decoding, length)[1] for length in (1, 2)] == [OUT, 1]
    forced = replace(decoding, forced_first_token_id=4)
    assert [applied(forced, length)[1] for length in (1, 2, 3)] == [OUT, OUT, 1]
    assert applied(forced, 1)[4] == 0
    assert applied(replace(forced, prompt_token_ids=(2, 5)), 2)[1] == OUT


def test_bad_tokens_may_be_forced_and_never_keep_the_end_from_coming() -> None:
    decoding = replace(PLAIN, bad_token_ids=(1, 3, 4), forced_first_token_id=4)
    assert applied(decoding, 1)[4] == 0
    assert applied(decoding, 2) == [1, OUT, 1, 1, OUT, 1]
    assert applied(replace(decoding, suppressed_token_ids=(3,)), 2) == [1, OUT, 1, OUT, OUT, 1]
