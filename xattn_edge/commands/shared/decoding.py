"""The options of decoding, made from the fields of `DecodingOptions`: the same for every command that generates."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from typing import Annotated, Any, Literal, get_type_hints

import typer

from xattn_runtime.generate.options import DecodingOptions

__all__ = ["takes_decoding_options"]


_Command = Callable[..., None]


@dataclass(frozen=True)
class _Option:
    """help: what it does. minimum: the least value. names: on the command line, where not that of the field."""

    help: str
    minimum: int | None = None
    names: tuple[str, ...] = ()


_OPTIONS: Mapping[str, _Option] = {
    "beams": _Option("Search this many sequences at once; without it, as the bundle says.", 1),
    "max_new_tokens": _Option("Stop after this many tokens.", 1),
    "min_new_tokens": _Option("Generate at least this many tokens.", 0),
    "length_penalty": _Option("Favour long texts (> 0) or short ones (< 0) in a beam search."),
    "early_stopping": _Option("End a beam search when all beams have ended (true), or when none can improve (never)."),
    "repetition_penalty": _Option("Penalize tokens already generated (> 1)."),
    "no_repeat_ngram_size": _Option("Repeat no sequence of this many tokens.", 0),
    "temperature": _Option("Sample tokens: likely ones more often (< 1), or less often (> 1)."),
    "top_k": _Option("Sample among this many of the most probable tokens.", 0, ("--top-k", "--sample-top-k")),
    "top_p": _Option("Sample among the fewest tokens whose probabilities add up to this."),
    "min_p": _Option("Discard tokens below this fraction of the top probability."),
    "seed": _Option("Sample the same tokens every time.", 0),
    "n_best": _Option("Return this many texts: the best of the beams, or samples.", 1),
    "stop": _Option("End the text before this string; repeat for several."),
    "prefix": _Option("Begin the text with this string."),
}
_TYPES: Mapping[str, Any] = {"early_stopping": Literal["true", "false", "never"] | None, "stop": list[str] | None}


def takes_decoding_options(names: Mapping[str, str] | None = None) -> Callable[[_Command], _Command]:
    """Give a command the options of decoding in place of its parameter `decoding`, which gets them as one value.

    names: field → its one name on the command line, where the command uses the usual one for something else.
    """

    def decorate(command: _Command) -> _Command:
        parameters = _parameters(names or {})

        @functools.wraps(command)
        def run(**values: Any) -> None:
            chosen = {name: values.pop(name) for name in parameters}
            command(**values, decoding=_decoding_options(chosen))

        signature, hints = inspect.signature(command), get_type_hints(command, include_extras=True)
        merged: list[inspect.Parameter] = []
        for parameter in signature.parameters.values():
            merged += (
                parameters.values()
                if parameter.name == "decoding"
                else [parameter.replace(annotation=hints[parameter.name])]
            )
        run.__signature__ = signature.replace(parameters=merged)  # type: ignore[attr-defined]
        run.__annotations__ = {parameter.name: parameter.annotation for parameter in merged} | {"return": None}
        return run

    return decorate


def _parameters(names: Mapping[str, str]) -> dict[str, inspect.Parameter]:
    hints = get_type_hints(DecodingOptions)
    parameters = {}
    for field in fields(DecodingOptions):
        row = _OPTIONS[field.name]
        flags = (names[field.name],) if field.name in names else row.names or (f"--{field.name.replace('_', '-')}",)
        option = typer.Option(*flags, help=row.help, min=row.minimum)
        parameters[field.name] = inspect.Parameter(
            field.name,
            inspect.Parameter.KEYWORD_ONLY,
            default=None if field.name in _TYPES else field.default,
            annotation=Annotated[_TYPES.get(field.name, hints[field.name]), option],
        )
    return parameters


def _decoding_options(values: Mapping[str, Any]) -> DecodingOptions:
    early_stopping = {None: None, "true": True, "false": False, "never": "never"}[values["early_stopping"]]
    return DecodingOptions(**{**values, "early_stopping": early_stopping, "stop": tuple(values["stop"] or ())})
