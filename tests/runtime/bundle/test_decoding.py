from __future__ import annotations

from typing import Any

import pytest

from xattn_runtime.bundle.decoding import Decoding, read_decoding
from xattn_runtime.errors import BundleError, UserError
from xattn_runtime.json_reader import ObjectReader

FEWEST: dict[str, Any] = {
    "prompt_token_ids": [2, 5], "end_token_ids": [3], "pad_token_id": 0, "max_new_tokens": 12,
}  # fmt: skip
MOST = FEWEST | {
    "max_length": 10, "max_positions": 20, "min_new_tokens": 1, "min_length": 3, "beams": 4, "length_penalty": -0.5,
    "early_stopping": "never", "repetition_penalty": 1.5, "no_repeat_ngram_size": 3, "forced_first_token_id": 0,
    "forced_last_token_id": 3, "suppressed_token_ids": [7, 8], "begin_suppressed_token_ids": [9], "bad_token_ids": [6],
}  # fmt: skip


def read(values: dict[str, Any]) -> Decoding:
    return read_decoding(ObjectReader(values, "manifest.json", "decoding"))


@pytest.mark.parametrize("values", [FEWEST, FEWEST | {"end_token_ids": []}, MOST], ids=["fewest", "endless", "most"])
def test_what_is_written_reads_back_the_same(values: dict[str, Any]) -> None:
    assert read(values).to_dict() == values
    assert all(getattr(read(values), name) is not None for name in values)


def test_a_start_token_is_a_prompt_of_one() -> None:
    values = {key: value for key, value in FEWEST.items() if key != "prompt_token_ids"} | {"start_token_id": 2}
    assert read(values) == Decoding((2,), (3,), 0, 12)
    assert read(values).to_dict() == FEWEST | {"prompt_token_ids": [2]}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"start_token_id": 2}, "start_token_id: expected only the keys"),
        ({"prompt_token_ids": []}, "prompt_token_ids: expected at least one token id"),
        ({"max_positions": 2}, "max_positions: expected more positions than the prompt has tokens, found 2"),
        ({"max_length": 2}, "max_length: expected a length above the prompt's, found 2"),
        ({"beams": 0}, "beams: expected an integer of at least 1, found 0"),
        ({"beams": 65}, "beams: expected at most 64, found 65"),
        ({"beams": True}, "beams: expected an integer"),
        ({"length_penalty": "1"}, "length_penalty: expected a number, found '1'"),
        ({"length_penalty": float("nan")}, "length_penalty: expected a number, found nan"),
        ({"early_stopping": 1}, "early_stopping: expected true, false or 'never', found 1"),
        ({"repetition_penalty": 0}, "repetition_penalty: expected a number above 0"),
        ({"no_repeat_ngram_size": -1}, "no_repeat_ngram_size: expected an integer of at least 0"),
        ({"bad_token_ids": [[1]]}, "bad_token_ids: expected a list of integers"),
        (
            {"suppressed_token_ids": [3], "forced_last_token_id": 3},
            "forced_last_token_id: expected a token that is not",
        ),
        ({"temperature": 1.0}, "temperature: expected only the keys"),
    ],
)
def test_wrong_values_are_named(change: dict[str, Any], message: str) -> None:
    with pytest.raises(BundleError) as caught:
        read(FEWEST | change)
    assert f"manifest.json: decoding.{message}" in str(caught.value)


def test_what_a_caller_asks_for() -> None:
    decoding = Decoding((2,), (3,), 0, 12, beams=4, max_positions=30)
    assert decoding.for_call() == decoding
    assert decoding.for_call(beams=1).beams == 1
    assert decoding.for_call(max_new_tokens=29).max_new_tokens == 29
    longer = decoding.for_call(prompt_ids=range(20, 40))
    assert (longer.prompt_token_ids, longer.max_new_tokens) == ((2, *range(20, 40)), 9)


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"beams": 0}, "beams: expected 1 to 64, found 0"),
        ({"beams": 65}, "beams: expected 1 to 64, found 65"),
        ({"max_new_tokens": 0}, "max_new_tokens: expected 1 to 29, this bundle's limit, found 0"),
        ({"max_new_tokens": 30}, "max_new_tokens: expected 1 to 29, this bundle's limit, found 30"),
        ({"max_new_tokens": 28, "prompt_ids": (5, 5)}, "max_new_tokens: expected 1 to 27"),
        ({"prompt_ids": range(29)}, "prompt: expected at most 28 tokens, found 29; write a shorter one"),
        ({"prompt_ids": range(40), "max_new_tokens": 1}, "prompt: expected at most 28 tokens, found 40"),
    ],
)
def test_what_a_caller_cannot_have(asked: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError) as caught:
        Decoding((2,), (3,), 0, 12, max_positions=30).for_call(**asked)
    assert message in str(caught.value)


def test_without_positions_a_bundle_has_as_many_as_it_uses() -> None:
    decoding = Decoding((2,), (3,), 0, 12)
    assert decoding.for_call(prompt_ids=(5, 5)).max_new_tokens == 10
    with pytest.raises(UserError, match="expected 1 to 12"):
        decoding.for_call(max_new_tokens=13)
