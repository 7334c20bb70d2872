"""What a folder says of decoding is what `generate()` reads in it; what cannot be obeyed is refused by name."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from xattn_export.families.checkpoint_folder.decoding import decoding_of
from xattn_runtime.bundle.decoding import Decoding, read_decoding
from xattn_runtime.errors import CheckpointError, UserError
from xattn_runtime.json_reader import ObjectReader

TOKENS = {"decoder_start_token_id": 5, "bos_token_id": 6, "eos_token_id": 7, "pad_token_id": 8}
FILE = Path("folder/generation_config.json")


def _decoding(stated: Mapping[str, Any], **options: Any) -> Decoding:
    return decoding_of(FILE, TOKENS | dict(stated), **({"vocabulary": 90, "max_positions": 100} | options))


def test_every_key_arrives() -> None:
    stated = {
        "min_length": 3, "num_beams": 4, "length_penalty": 0.6, "early_stopping": "never", "repetition_penalty": 1.5,
        "no_repeat_ngram_size": 3, "forced_bos_token_id": 11, "forced_eos_token_id": [7], "suppress_tokens": [1, 2],
        "begin_suppress_tokens": [3], "bad_words_ids": [[12], [13]], "max_length": 30,
    }  # fmt: skip
    found = _decoding(stated)
    assert found == Decoding(
        prompt_token_ids=(5,), end_token_ids=(7,), pad_token_id=8, max_new_tokens=29, max_length=30, max_positions=100,
        min_length=3, beams=4, length_penalty=0.6, early_stopping="never", repetition_penalty=1.5,
        no_repeat_ngram_size=3, forced_first_token_id=11, forced_last_token_id=7, suppressed_token_ids=(1, 2),
        begin_suppressed_token_ids=(3,), bad_token_ids=(12, 13),
    )  # fmt: skip
    assert read_decoding(ObjectReader(json.loads(json.dumps(found.to_dict())), "manifest.json")) == found


def test_what_says_nothing_is_neutral() -> None:
    neutral = {
        "do_sample": False, "temperature": 0.7, "top_k": 50, "top_p": 0.9, "num_beam_groups": 1,
        "diversity_penalty": 0.0, "encoder_no_repeat_ngram_size": 0, "guidance_scale": 1, "sequence_bias": None,
        "use_cache": True, "num_return_sequences": 1, "pad_token_id": -1,
        "transformers_version": "5.0.0", "_from_model_config": True, "chat_format": "anything",
    }  # fmt: skip
    found = decoding_of(FILE, {"bos_token_id": 6, "eos_token_id": [7, 9]} | neutral, vocabulary=90, max_positions=100)
    assert found == Decoding((6,), (7, 9), 7, max_new_tokens=20, max_positions=100)


@pytest.mark.parametrize(
    ("stated", "options", "expected"),
    [
        ({}, {}, (20, None, 100)),
        ({}, {"max_positions": 12}, (11, None, 12)),
        ({"max_new_tokens": 9, "max_length": 4}, {"max_positions": 64}, (9, None, 64)),
        ({"max_length": 16}, {"prompt_token_ids": (1, 2, 3)}, (13, 16, 100)),
        ({"max_length": 500}, {"max_positions": 64}, (63, 64, 64)),
    ],
)
def test_limits(stated: dict[str, Any], options: dict[str, Any], expected: tuple[Any, ...]) -> None:
    found = _decoding(stated, **options)
    assert (found.max_new_tokens, found.max_length, found.max_positions) == expected


def test_a_shortest_length_of_new_tokens_is_taken_before_one_of_all() -> None:
    found = _decoding({"min_length": 9, "min_new_tokens": 2})
    assert (found.min_length, found.min_new_tokens) == (0, 2)


def test_tokens_beyond_the_vocabulary_never_come() -> None:
    stated = {"eos_token_id": [7, 90], "suppress_tokens": [1, 95], "begin_suppress_tokens": [90], "pad_token_id": 90}
    found = _decoding(stated)
    assert (found.end_token_ids, found.pad_token_id) == ((7,), 7)
    assert (found.suppressed_token_ids, found.begin_suppressed_token_ids) == ((1,), ())
    assert _decoding({"pad_token_id": 90}).pad_token_id == 7


@pytest.mark.parametrize("stated", [None, []])
def test_without_an_end_the_most_tokens_are_generated(stated: list[int] | None) -> None:
    found = _decoding({"eos_token_id": stated, "pad_token_id": None, "max_length": 12})
    assert (found.end_token_ids, found.pad_token_id, found.max_new_tokens) == ((), 0, 11)


def test_tokens_that_the_model_sets_itself() -> None:
    found = _decoding({}, prompt_token_ids=(30,), end_token_ids=(31, 32), pad_token_id=0)
    assert (found.prompt_token_ids, found.end_token_ids, found.pad_token_id) == ((30,), (31, 32), 0)


REFUSED: list[tuple[dict[str, Any], str]] = [
    (
        {"decoder_start_token_id": 90},
        "decoder_start_token_id: expected a token of the model's, below 90, found 90",
    ),
    ({"cache_implementation": "quantized"}, "cache_implementation: expected a cache that is not quantized"),
    (
        {"do_sample": True},
        "do_sample: expected false, since what is supported is greedy decoding and beam search, found",
    ),
    ({"num_beam_groups": 2}, "num_beam_groups: expected 1, found 2"),
    ({"diversity_penalty": 0.5}, "diversity_penalty: expected 0, found 0.5"),
    ({"penalty_alpha": 0.6, "top_k": 4}, "penalty_alpha: expected 0, found 0.6"),
    ({"encoder_no_repeat_ngram_size": 3}, "encoder_no_repeat_ngram_size: expected 0, found 3"),
    ({"encoder_repetition_penalty": 1.2}, "encoder_repetition_penalty: expected 1, found 1.2"),
    ({"guidance_scale": 1.5}, "guidance_scale: expected 1, found 1.5"),
    ({"use_mtp": True}, "use_mtp: expected false, found True"),
    ({"assistant_early_exit": 2}, "assistant_early_exit: expected no such key, found 2"),
    ({"forced_bos_token_id": 90}, "forced_bos_token_id: expected a token of the model's, below 90, found 90"),
    ({"bad_words_ids": [[3], [95]]}, "bad_words_ids: expected a token of the model's, below 90, found 95"),
    ({"eos_token_id": [90, 91]}, "eos_token_id: expected a token of the model's, below 90, found [90, 91]"),
    ({"renormalize_logits": True}, "renormalize_logits: expected false, found True"),
    ({"remove_invalid_values": True}, "remove_invalid_values: expected false, found True"),
    ({"constraints": [{}]}, "constraints: expected no such key"),
    ({"force_words_ids": [[3]]}, "force_words_ids: expected no such key"),
    ({"exponential_decay_length_penalty": [3, 1.1]}, "exponential_decay_length_penalty: expected no such key"),
    ({"sequence_bias": [[[3], 1.5]]}, "sequence_bias: expected no such key"),
    ({"stop_strings": ["."]}, "stop_strings: expected no such key"),
    ({"watermarking_config": {"bias": 2}}, "watermarking_config: expected no such key"),
    ({"dola_layers": "low"}, "dola_layers: expected no such key"),
    ({"bad_words_ids": [[3, 4]]}, "bad_words_ids: expected words of one token each"),
    ({"forced_eos_token_id": [3, 4]}, "forced_eos_token_id: expected one token, found [3, 4]"),
    (
        {"forced_bos_token_id": 3, "suppress_tokens": [3]},
        "forced_bos_token_id: expected a token that is not suppressed",
    ),
    ({"num_beams": 0}, "num_beams: expected an integer of at least 1, found 0"),
    ({"num_beams": 1000}, "num_beams: expected at most 64, found 1000"),
    ({"early_stopping": "soon"}, "early_stopping: expected true or false, found 'soon'"),
    ({"length_penalty": "1"}, "length_penalty: expected a number, found '1'"),
    ({"repetition_penalty": 0}, "repetition_penalty: expected a number above 0, found 0"),
    ({"max_length": 1}, "max_length: expected an integer of at least 2, found 1"),
    ({"eos_token_id": "</s>"}, "eos_token_id: expected an integer of at least 0, found '</s>'"),
    (
        {"decoder_start_token_id": None, "bos_token_id": None},
        "decoder_start_token_id: expected the id of the token that a text begins with, here or as bos_token_id, found",
    ),
]


@pytest.mark.parametrize(("stated", "message"), REFUSED, ids=[message for _, message in REFUSED])
def test_what_cannot_be_obeyed_is_named(stated: dict[str, Any], message: str) -> None:
    with pytest.raises(CheckpointError) as caught:
        _decoding(stated)
    assert f"generation_config.json: {message}" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_too_few_positions() -> None:
    with pytest.raises(CheckpointError, match="expected more than 3 positions, the prompt's, found 3"):
        _decoding({}, prompt_token_ids=(1, 2, 3), max_positions=3)


def test_a_prompt_leaves_as_much_as_generate_leaves_it() -> None:
    """`max_length` counts the prompt, `max_new_tokens` does not, and the positions bound both."""
    counted = _decoding({"max_length": 16}, max_positions=64)
    assert counted.for_call(prompt_ids=(1, 2, 3, 4)).max_new_tokens == 11
    assert counted.for_call(prompt_ids=(1, 2, 3, 4), max_new_tokens=40).max_new_tokens == 40
    new = _decoding({"max_new_tokens": 16}, max_positions=18)
    assert new.for_call().max_new_tokens == 16
    assert new.for_call(prompt_ids=(1, 2, 3, 4)).max_new_tokens == 13
    with pytest.raises(UserError, match="prompt: expected at most 14 tokens, found 15"):
        counted.for_call(prompt_ids=range(15))
