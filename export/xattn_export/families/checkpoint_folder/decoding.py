"""Turns the settings of a Transformers model's `generate()` into the manifest's `decoding`.

It takes them as Transformers itself resolved them when the model was loaded. A setting that changes what `generate()`
returns and that the runtime does not obey is an error that names it.
https://huggingface.co/docs/transformers/main_classes/text_generation
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from xattn_runtime.bundle.decoding import MOST_BEAMS, Decoding, EarlyStopping
from xattn_runtime.errors import BundleError, CheckpointError
from xattn_runtime.json_reader import ObjectReader, show

__all__ = ["decoding_of"]

_DEFAULT_NEW_TOKENS = 20
_START = "decoder_start_token_id"

_NOT_OBEYED: Mapping[str, tuple[Callable[[Any], bool], str]] = {
    "do_sample": (
        lambda value: value is not False,
        "false, since what is supported is greedy decoding and beam search",
    ),
    "num_beam_groups": (lambda value: value != 1, "1"),
    "diversity_penalty": (lambda value: value != 0, "0"),
    "penalty_alpha": (lambda value: value != 0, "0"),
    "guidance_scale": (lambda value: value != 1, "1"),
    "encoder_repetition_penalty": (lambda value: value != 1, "1"),
    "encoder_no_repeat_ngram_size": (lambda value: value != 0, "0"),
    "renormalize_logits": (lambda value: value is not False, "false"),
    "remove_invalid_values": (lambda value: value is not False, "false"),
    "token_healing": (lambda value: value is not False, "false"),
    "is_assistant": (lambda value: value is not False, "false"),
    "use_mtp": (lambda value: value is not False, "false"),
    "cache_implementation": (lambda value: value == "quantized", "a cache that is not quantized"),
    **dict.fromkeys(
        (
            "assistant_early_exit",
            "assistant_ensemble_weight",
            "constraints",
            "dola_layers",
            "exponential_decay_length_penalty",
            "force_words_ids",
            "max_time",
            "sequence_bias",
            "stop_strings",
            "watermarking_config",
        ),
        (lambda value: value not in ([], {}), "no such key"),
    ),
}
"""Keys that change what is generated, when they do, and what the runtime takes."""


def decoding_of(
    path: Path,
    settings: Mapping[str, Any],
    *,
    vocabulary: int,
    max_positions: int,
    prompt_token_ids: Sequence[int] | None = None,
    end_token_ids: Sequence[int] = (),
    pad_token_id: int | None = None,
) -> Decoding:
    """How a model decodes whose `generate()` goes by `settings`, which the file at `path` states.

    Args:
        settings: a `GenerationConfig` as a dictionary; a setting of None is not stated.
        vocabulary: how many tokens the decoder can give. max_positions: the most tokens that it can hold.
        prompt_token_ids, end_token_ids, pad_token_id: what the model's own `generate` uses in place of the settings,
            if it does. No prompt is one, too, where a text comes with every call.

    Raises:
        CheckpointError: a setting has a wrong value, or changes the result and is not obeyed; no start token, or a
            forced one that the decoder cannot give.
    """
    values = {key: value for key, value in settings.items() if value is not None}
    if values.get("pad_token_id") == -1:  # what some versions wrote for none
        del values["pad_token_id"]
    for key, (changes, expected) in _NOT_OBEYED.items():
        if key in values and changes(values[key]):
            raise CheckpointError(
                f"{path}: {key}: expected {expected}, found {show(values[key])}; change the file to export the model"
            )
    if end_token_ids:
        values["eos_token_id"] = list(end_token_ids)
    if pad_token_id is not None:
        values["pad_token_id"] = pad_token_id
    try:
        reader = ObjectReader(values, str(path))
        decoding = _within(reader, _decoding(reader, prompt_token_ids, max_positions, vocabulary), vocabulary)
    except BundleError as error:
        raise CheckpointError(str(error)) from error
    if decoding.max_new_tokens < 1:
        prompt = len(decoding.prompt_token_ids)
        raise CheckpointError(f"{path}: expected more than {prompt} positions, the prompt's, found {max_positions}")
    return decoding


def _decoding(
    reader: ObjectReader, prompt_token_ids: Sequence[int] | None, positions: int, vocabulary: int
) -> Decoding:
    prompt = _start(reader, vocabulary) if prompt_token_ids is None else tuple(prompt_token_ids)
    ends = _ids(reader, "eos_token_id")
    new_tokens, max_length = _limits(reader, len(prompt))
    new_only = "min_new_tokens" in reader
    return Decoding(
        prompt_token_ids=prompt,
        end_token_ids=ends,
        pad_token_id=_integer(reader, "pad_token_id", (*ends, 0)[0]),
        max_new_tokens=min(new_tokens, positions - len(prompt)),
        max_length=None if max_length is None else min(max_length, positions),
        max_positions=positions,
        min_new_tokens=_integer(reader, "min_new_tokens", 0),
        min_length=0 if new_only else _integer(reader, "min_length", 0),
        beams=_beams(reader),
        length_penalty=reader.number("length_penalty") if "length_penalty" in reader else 1.0,
        early_stopping=_early_stopping(reader),
        repetition_penalty=reader.positive("repetition_penalty") if "repetition_penalty" in reader else 1.0,
        no_repeat_ngram_size=_integer(reader, "no_repeat_ngram_size", 0),
        forced_first_token_id=_forced(reader, "forced_bos_token_id"),
        forced_last_token_id=_forced(reader, "forced_eos_token_id"),
        suppressed_token_ids=_ids(reader, "suppress_tokens"),
        begin_suppressed_token_ids=_ids(reader, "begin_suppress_tokens"),
        bad_token_ids=_bad_tokens(reader),
    )


def _within(reader: ObjectReader, decoding: Decoding, vocabulary: int) -> Decoding:
    """`decoding` without end tokens and suppressed ones that the decoder cannot give: they change nothing."""
    found = sorted(token_id for token_id in decoding.generated_ids if token_id >= vocabulary)
    if not found and decoding.pad_token_id < vocabulary:
        return decoding
    expected = f"a token of the model's, below {vocabulary}"
    for key in ("forced_bos_token_id", "forced_eos_token_id", "bad_words_ids"):
        if beyond := set(_named(reader, key)) & set(found):
            reader.fail(key, expected, max(beyond))
    barred = (decoding.end_token_ids, decoding.suppressed_token_ids, decoding.begin_suppressed_token_ids)
    ends, suppressed, first = (tuple(token_id for token_id in ids if token_id < vocabulary) for ids in barred)
    if decoding.end_token_ids and not ends:
        reader.fail("eos_token_id", expected, list(decoding.end_token_ids))
    return replace(
        decoding,
        end_token_ids=ends,
        pad_token_id=decoding.pad_token_id if decoding.pad_token_id < vocabulary else (*ends, 0)[0],
        suppressed_token_ids=suppressed,
        begin_suppressed_token_ids=first,
    )


def _named(reader: ObjectReader, key: str) -> tuple[int, ...]:
    return _bad_tokens(reader) if key == "bad_words_ids" else _ids(reader, key)


def _start(reader: ObjectReader, vocabulary: int) -> tuple[int, ...]:
    key = "bos_token_id" if "bos_token_id" in reader and "decoder_start_token_id" not in reader else _START
    if key not in reader:
        reader.fail(key, "the id of the token that a text begins with, here or as bos_token_id", None)
    token_id = reader.integer(key)
    if token_id >= vocabulary:
        reader.fail(key, f"a token of the model's, below {vocabulary}", token_id)
    return (token_id,)


def _limits(reader: ObjectReader, prompt_length: int) -> tuple[int, int | None]:
    """The most new tokens, and the most of prompt and new tokens together where that is stated."""
    if "max_new_tokens" in reader:
        return reader.integer("max_new_tokens", minimum=1), None
    if "max_length" not in reader:
        return _DEFAULT_NEW_TOKENS, None
    max_length = reader.integer("max_length", minimum=prompt_length + 1)
    return max_length - prompt_length, max_length


def _integer(reader: ObjectReader, key: str, default: int) -> int:
    return reader.integer(key) if key in reader else default


def _ids(reader: ObjectReader, key: str) -> tuple[int, ...]:
    """Token ids, written as a number or as a list; empty if the key is missing."""
    if key not in reader:
        return ()
    return reader.integers(key) if isinstance(reader.raw(key), list) else (reader.integer(key),)


def _forced(reader: ObjectReader, key: str) -> int | None:
    ids = _ids(reader, key)
    if len(ids) > 1:
        reader.fail(key, "one token", list(ids))
    if set(ids) & set(_ids(reader, "suppress_tokens")):
        reader.fail(key, "a token that is not suppressed", ids[0])
    return ids[0] if ids else None


def _beams(reader: ObjectReader) -> int:
    beams = reader.integer("num_beams", minimum=1) if "num_beams" in reader else 1
    if beams > MOST_BEAMS:
        reader.fail("num_beams", f"at most {MOST_BEAMS}", beams)
    return beams


def _early_stopping(reader: ObjectReader) -> EarlyStopping:
    if "early_stopping" in reader and reader.raw("early_stopping") == "never":
        return "never"
    return reader.boolean("early_stopping") if "early_stopping" in reader else False


def _bad_tokens(reader: ObjectReader) -> tuple[int, ...]:
    if "bad_words_ids" not in reader:
        return ()
    words = reader.items("bad_words_ids", "a list of lists")
    if not all(isinstance(word, list) and len(word) == 1 and isinstance(word[0], int) for word in words):
        reader.fail("bad_words_ids", "words of one token each, since longer ones are not supported", words)
    return tuple(word[0] for word in words if isinstance(word, list))
