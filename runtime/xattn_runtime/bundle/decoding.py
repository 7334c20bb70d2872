"""How token ids are decoded: the manifest's `decoding`, typed, and what a caller may change of it.

The names are the manifest's; the meaning of each is that of Transformers' `generate()`, where prompt and generated
tokens together are called the length. It reads and writes plain JSON values and knows no graph.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from functools import cached_property
from typing import Any, Literal

from xattn_runtime.errors import UserError
from xattn_runtime.json_reader import ObjectReader, show

__all__ = ["MOST_BEAMS", "NO_TOKEN", "Decoding", "EarlyStopping", "read_decoding"]

EarlyStopping = bool | Literal["never"]

MOST_BEAMS = 64

# What the loop in a graph is given for the tokens that end a sequence where there are none.
NO_TOKEN = (-1,)

# All other settings change scores.
_SEARCH_AND_LIMITS = frozenset({
    "prompt_token_ids", "end_token_ids", "pad_token_id", "max_new_tokens", "max_length", "max_positions",
    "beams", "length_penalty", "early_stopping",
})  # fmt: skip


@dataclass(frozen=True)
class Decoding:
    """Settings of greedy (`beams` 1) and beam search; all but the first four have neutral defaults.

    prompt_token_ids: what the decoder is fed first; none where a text comes with every call.
    end_token_ids: each of them ends a sequence; without any all have the most tokens.
    pad_token_id: what the decoder is fed for a row that has ended.
    max_new_tokens: the most tokens to generate, an end token included.
    max_length: the most tokens of prompt and generated text together, where the model's settings limit that.
    max_positions: the most tokens that the decoder can hold; by default the prompt's and `max_new_tokens`.
    min_new_tokens, min_length: before so many generated tokens, or so long a sequence, no end token may come.
    beams: sequences searched at once.
    length_penalty: a beam's score is its log-probability over the number of generated tokens to this power.
    early_stopping: when a beam search ends: `True` as soon as `beams` sequences have ended, `False` when no running
        beam would better them at its present length, `"never"` when none can at any length.
    repetition_penalty: divides positive scores and multiplies negative ones of tokens that were there before.
    no_repeat_ngram_size: no sequence of so many tokens may come twice; 0 allows all.
    forced_first_token_id: the first generated token, after a prompt of one.
    forced_last_token_id: the token generated where the limit is reached.
    suppressed_token_ids, begin_suppressed_token_ids: never generated, never generated first.
    bad_token_ids: never generated unless forced.
    """

    prompt_token_ids: tuple[int, ...]
    end_token_ids: tuple[int, ...]
    pad_token_id: int
    max_new_tokens: int
    max_length: int | None = None
    max_positions: int | None = None
    min_new_tokens: int = 0
    min_length: int = 0
    beams: int = 1
    length_penalty: float = 1.0
    early_stopping: EarlyStopping = False
    repetition_penalty: float = 1.0
    no_repeat_ngram_size: int = 0
    forced_first_token_id: int | None = None
    forced_last_token_id: int | None = None
    suppressed_token_ids: tuple[int, ...] = ()
    begin_suppressed_token_ids: tuple[int, ...] = ()
    bad_token_ids: tuple[int, ...] = ()

    @property
    def generated_ids(self) -> frozenset[int]:
        """Every token id that the settings name as one that is generated, or never is."""
        forced = (self.forced_first_token_id, self.forced_last_token_id)
        barred = (*self.suppressed_token_ids, *self.begin_suppressed_token_ids, *self.bad_token_ids)
        return frozenset((*self.end_token_ids, *barred, *(token_id for token_id in forced if token_id is not None)))

    @cached_property
    def is_plain(self) -> bool:
        """Whether the search is greedy, and no setting changes the scores."""
        settings_of_scores = (field for field in fields(self) if field.name not in _SEARCH_AND_LIMITS)
        return self.beams == 1 and all(getattr(self, field.name) == field.default for field in settings_of_scores)

    def shown_prompt(self, *, is_followed: bool) -> tuple[int, ...]:
        """Whose text a generated text begins with: `prompt_token_ids`, unless another prompt follows them."""
        return () if is_followed else self.prompt_token_ids

    def for_call(
        self, *, prompt_ids: Sequence[int] = (), beams: int | None = None, max_new_tokens: int | None = None
    ) -> Decoding:
        """The settings of one call: `prompt_ids` fed after the prompt, `max_new_tokens` as far as it then can go.

        Raises UserError for a prompt that leaves no room, or a number out of range.
        """
        if beams is not None and not 1 <= beams <= MOST_BEAMS:
            raise UserError(f"beams: expected 1 to {MOST_BEAMS}, found {show(beams)}")
        prompt = (*self.prompt_token_ids, *prompt_ids)
        room = (self.max_positions or len(self.prompt_token_ids) + self.max_new_tokens) - len(prompt)
        limit = room
        if max_new_tokens is None:
            limit = min(self.max_new_tokens, room, room if self.max_length is None else self.max_length - len(prompt))
        if limit < 1:
            most = max(0, len(prompt_ids) + limit - 1)
            raise UserError(f"prompt: expected at most {most} tokens, found {len(prompt_ids)}; write a shorter one")
        if max_new_tokens is not None and not 1 <= max_new_tokens <= room:
            raise UserError(f"max_new_tokens: expected 1 to {room}, this bundle's limit, found {show(max_new_tokens)}")
        return replace(
            self,
            prompt_token_ids=prompt,
            beams=self.beams if beams is None else beams,
            max_new_tokens=limit if max_new_tokens is None else max_new_tokens,
        )

    def to_dict(self) -> dict[str, Any]:
        """The settings as JSON values, without those that are neutral; `read_decoding` takes them back."""
        values = {field.name: (getattr(self, field.name), field.default) for field in fields(self)}
        return {
            name: list(value) if isinstance(value, tuple) else value
            for name, (value, default) in values.items()
            if value != default
        }


def read_decoding(reader: ObjectReader, *, needs_prompt: bool = True) -> Decoding:
    """The settings under a manifest's `decoding`; BundleError for a key that is unknown or of a wrong value.

    `start_token_id` is another way to write a prompt of one token. `needs_prompt`: whether there must be one.
    """
    decoding = Decoding(
        prompt_token_ids=_prompt(reader, needs_prompt),
        end_token_ids=reader.integers("end_token_ids"),
        pad_token_id=reader.integer("pad_token_id"),
        max_new_tokens=reader.integer("max_new_tokens", minimum=1),
        max_length=_integer_or_none(reader, "max_length", minimum=1),
        max_positions=_integer_or_none(reader, "max_positions", minimum=1),
        min_new_tokens=_integer_or_none(reader, "min_new_tokens") or 0,
        min_length=_integer_or_none(reader, "min_length") or 0,
        beams=_beams(reader),
        length_penalty=reader.number("length_penalty") if "length_penalty" in reader else 1.0,
        early_stopping=_early_stopping(reader),
        repetition_penalty=reader.positive("repetition_penalty") if "repetition_penalty" in reader else 1.0,
        no_repeat_ngram_size=_integer_or_none(reader, "no_repeat_ngram_size") or 0,
        forced_first_token_id=_integer_or_none(reader, "forced_first_token_id"),
        forced_last_token_id=_integer_or_none(reader, "forced_last_token_id"),
        suppressed_token_ids=_ids(reader, "suppressed_token_ids"),
        begin_suppressed_token_ids=_ids(reader, "begin_suppressed_token_ids"),
        bad_token_ids=_ids(reader, "bad_token_ids"),
    )
    if (most := decoding.max_positions) is not None and most <= len(decoding.prompt_token_ids):
        reader.fail("max_positions", "more positions than the prompt has tokens", most)
    if (most := decoding.max_length) is not None and most <= len(decoding.prompt_token_ids):
        reader.fail("max_length", "a length above the prompt's", most)
    for key in ("forced_first_token_id", "forced_last_token_id"):
        if (forced := getattr(decoding, key)) in decoding.suppressed_token_ids:
            reader.fail(key, "a token that is not suppressed", forced)
    reader.finish()
    return decoding


def _prompt(reader: ObjectReader, is_needed: bool) -> tuple[int, ...]:
    if "start_token_id" in reader and "prompt_token_ids" not in reader:
        return (reader.integer("start_token_id"),)
    ids = reader.integers("prompt_token_ids")
    if is_needed and not ids:
        reader.fail("prompt_token_ids", "at least one token id", [])
    return ids


def _ids(reader: ObjectReader, key: str) -> tuple[int, ...]:
    return reader.integers(key) if key in reader else ()


def _integer_or_none(reader: ObjectReader, key: str, minimum: int = 0) -> int | None:
    return reader.integer(key, minimum=minimum) if key in reader else None


def _beams(reader: ObjectReader) -> int:
    beams = _integer_or_none(reader, "beams", minimum=1) or 1
    if beams > MOST_BEAMS:
        reader.fail("beams", f"at most {MOST_BEAMS}", beams)
    return beams


def _early_stopping(reader: ObjectReader) -> EarlyStopping:
    if "early_stopping" not in reader:
        return False
    expected = "true, false or 'never'"
    value = reader.raw("early_stopping", expected)
    if value == "never":
        return "never"
    if not isinstance(value, bool):
        reader.fail("early_stopping", expected, value)
    return value
