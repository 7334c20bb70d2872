"""What a caller asks of decoding beyond what the bundle says, checked as a whole before anything is computed."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from functools import cached_property
from numbers import Integral, Real
from typing import Any

from xattn_runtime.arguments import choice, found, text
from xattn_runtime.bundle.decoding import Decoding, EarlyStopping
from xattn_runtime.errors import UserError
from xattn_runtime.json_reader import show

__all__ = ["MOST_SAMPLES", "DecodingOptions", "Sampling", "Stop", "decoding_options"]

Stop = Callable[[Sequence[int]], bool]
"""Whether generated token ids, prompt not counted, say enough."""

MOST_SAMPLES = 64
_OF_BEAMS = ("length_penalty", "early_stopping")
# `Decoding.for_call` takes these.
_OF_A_CALL = ("beams", "max_new_tokens")


@dataclass(frozen=True)
class Sampling:
    """How tokens are drawn: the scores over `temperature`, of them what passes all three limits.

    top_k: only so many of the best; 0 takes all. top_p: only the fewest best that have this probability together.
    min_p: none below this share of the best one's probability. seed: the same tokens every time; None, others.
    Order and meaning are those of Transformers' warpers in logits_process.py.
    """

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    seed: int | None = None


_SAMPLING = tuple(field.name for field in fields(Sampling))


@dataclass(frozen=True)
class DecodingOptions:
    """What one call changes; None is the default of the bundle. See `Decoding` and `Sampling` for what each is.

    With any of temperature, top_k, top_p, min_p and seed tokens are drawn, else the best are sought.
    n_best: how many sequences are returned: of a beam search at most its beams, of sampling so many draws.
    stop: the text ends before the first of these, and with it decoding.
    prefix: what the text begins with, as if the model had said it.
    """

    beams: int | None = None
    max_new_tokens: int | None = None
    min_new_tokens: int | None = None
    length_penalty: float | None = None
    early_stopping: EarlyStopping | None = None
    repetition_penalty: float | None = None
    no_repeat_ngram_size: int | None = None
    temperature: float | None = None
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None
    seed: int | None = None
    n_best: int = 1
    stop: tuple[str, ...] = ()
    prefix: str | None = None

    @property
    def non_default(self) -> tuple[str, ...]:
        """Names of the options that differ from their defaults."""
        return tuple(field.name for field in fields(self) if getattr(self, field.name) != field.default)

    def __post_init__(self) -> None:
        if isinstance(self.stop, list):  # so that equal options are one key
            object.__setattr__(self, "stop", tuple(self.stop))

    @cached_property
    def checked(self) -> DecodingOptions:
        """The same in Python's own numbers and texts; UserError for a value of another kind."""
        values = {name: _of_kind(name, getattr(self, name)) for name in _RANGES if getattr(self, name) is not None}
        if self.n_best is None:
            raise UserError(f"n_best: expected {_RANGES['n_best'][1]}, found None")
        if self.early_stopping is not None:
            values["early_stopping"] = choice("early_stopping", self.early_stopping, (True, False, "never"))
        if self.prefix is not None:
            values["prefix"] = text("prefix", self.prefix)
        if not isinstance(self.stop, tuple) or not all(isinstance(word, str) and word for word in self.stop):
            raise UserError(f"stop: expected texts that are not empty, found {found(self.stop)}")
        values["stop"] = tuple(text("stop", word) for word in self.stop)
        return DecodingOptions(**values)

    @cached_property
    def sampling(self) -> Sampling | None:
        """How tokens are drawn; None where none are."""
        chosen = {name: getattr(self, name) for name in _SAMPLING if getattr(self, name) is not None}
        return Sampling(**chosen) if chosen else None

    def with_shortcuts(self, beams: int | None, max_new_tokens: int | None) -> DecodingOptions:
        """These and two that calls take by themselves as well; UserError where both are set and differ."""
        if beams is None and max_new_tokens is None:
            return self.checked
        shortcuts = {"beams": beams, "max_new_tokens": max_new_tokens}
        chosen = {name: _of_kind(name, value) for name, value in shortcuts.items() if value is not None}
        for name, value in chosen.items():
            known = getattr(self.checked, name)
            if known is not None and known != value:
                raise UserError(f"{name}: expected one number, found {show(value)} and, in the options, {show(known)}")
        return replace(self.checked, **chosen)

    def apply_to(self, decoding: Decoding, prompt_ids: Sequence[int]) -> Decoding:
        """The settings of one call: `decoding`, a bundle's, as these options change it, with a prompt.

        Raises UserError for a value out of range, a prompt that leaves no room, and options that contradict each other.
        """
        return self.checked._applied_to(decoding, prompt_ids)

    def _applied_to(self, decoding: Decoding, prompt_ids: Sequence[int]) -> Decoding:
        beams = 1 if self.sampling is not None else self.beams
        settings = self._changing(decoding).for_call(
            prompt_ids=prompt_ids, beams=beams, max_new_tokens=self.max_new_tokens
        )
        if self.min_new_tokens is not None and self.min_new_tokens > settings.max_new_tokens:
            raise UserError(
                f"min_new_tokens: expected at most {settings.max_new_tokens}, the most there may be, found "
                f"{self.min_new_tokens}"
            )
        _check_penalty(settings)
        return settings

    def _changing(self, decoding: Decoding) -> Decoding:
        self._check_ranges()
        draws = self.sampling is not None
        if draws and self.beams is not None and self.beams > 1:
            drawn = ", ".join(name for name in _SAMPLING if getattr(self, name) is not None)
            raise UserError(f"beams: expected none beside {drawn}, which draw tokens, found {self.beams}; choose one")
        beams = self.beams if self.beams is not None else 1 if draws else decoding.beams
        for name in _OF_BEAMS:
            if getattr(self, name) is not None and beams == 1:
                raise UserError(f"{name}: expected 2 beams or more to choose among, found {beams}; ask for beams")
        if not draws and self.n_best > max(1, beams):
            raise UserError(
                f"n_best: expected at most the {beams} of beams, found {show(self.n_best)}; ask for more beams, or for "
                "a temperature"
            )
        names = {field.name for field in fields(self)} & {field.name for field in fields(decoding)} - {*_OF_A_CALL}
        changed: dict[str, Any] = {name: getattr(self, name) for name in names if getattr(self, name) is not None}
        if draws:
            changed["beams"] = 1
        return replace(decoding, **changed) if changed else decoding

    def _check_ranges(self) -> None:
        for name, (_, expected, is_right) in _RANGES.items():
            value = getattr(self, name)
            if value is not None and not is_right(value):
                raise UserError(f"{name}: expected {expected}, found {show(value)}")


_AS_BUNDLED = DecodingOptions()


def decoding_options(
    options: DecodingOptions | None, beams: int | None = None, max_new_tokens: int | None = None
) -> DecodingOptions:
    """What a call was asked for, by its options and the two that it takes by themselves; UserError as these raise."""
    if options is None:
        options = _AS_BUNDLED
    elif not isinstance(options, DecodingOptions):
        raise UserError(f"options: expected DecodingOptions, such as DecodingOptions(beams=4), found {found(options)}")
    return options.with_shortcuts(beams, max_new_tokens)


def _of_kind(name: str, value: object) -> Any:
    """The number `value` of the option `name` as Python's own."""
    kind, expected, _ = _RANGES[name]
    if not isinstance(value, kind) or isinstance(value, bool):
        raise UserError(f"{name}: expected {_KINDS[kind]}, found {found(value)}")
    try:
        return int(value) if kind is Integral else float(value)  # type: ignore[call-overload, arg-type]
    except OverflowError as error:  # an int above all floats
        raise UserError(f"{name}: expected {expected}, found {show(value)}") from error


def _check_penalty(decoding: Decoding) -> None:
    """UserError where a score over the length to this power is no number that float32 has."""
    if decoding.beams == 1 or decoding.max_new_tokens == 1:
        return
    most = _MOST_POWER / math.log10(decoding.max_new_tokens)
    if abs(decoding.length_penalty) > most:
        raise UserError(
            f"length_penalty: expected {-most:.1f} to {most:.1f} for texts of up to {decoding.max_new_tokens} tokens, "
            f"found {decoding.length_penalty:g}"
        )


def _above_zero(value: float) -> bool:
    return math.isfinite(value) and value > 0


def _not_negative(value: float) -> bool:
    return value >= 0


def _checked_by_the_call(value: float) -> bool:
    return True  # `Decoding.for_call` knows the bundle's limits


# Powers of ten; float32 has those up to 38.
_MOST_POWER = 30
_KINDS: Mapping[type, str] = {Integral: "a whole number", Real: "a number"}
_RANGES: Mapping[str, tuple[type, str, Callable[[float], bool]]] = {
    "beams": (Integral, "1 or more", _checked_by_the_call),
    "max_new_tokens": (Integral, "1 or more", _checked_by_the_call),
    "min_new_tokens": (Integral, "0 or more", _not_negative),
    "length_penalty": (Real, "a number", math.isfinite),
    "repetition_penalty": (Real, "a number, 1e-30 to 1e30", lambda value: 1e-30 <= value <= 1e30),
    "no_repeat_ngram_size": (Integral, "0 or more", _not_negative),
    "temperature": (Real, "a number above 0; leave it out for the best tokens", _above_zero),
    "top_k": (Integral, "0, all tokens, or more", _not_negative),
    "top_p": (Real, "above 0, at most 1", lambda value: 0 < value <= 1),
    "min_p": (Real, "0 to 1", lambda value: 0 <= value <= 1),
    "seed": (Integral, "0 or more", _not_negative),
    "n_best": (Integral, f"1 to {MOST_SAMPLES}", lambda value: 1 <= value <= MOST_SAMPLES),
}
"""Option that is a number → its kind, what is expected of it in words, and whether a value is that."""
