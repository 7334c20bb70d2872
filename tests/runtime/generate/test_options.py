"""Options of a call that are settings of the bundle too: each one takes effect, whatever option is added."""

from dataclasses import MISSING, fields

import pytest

from xattn_runtime.bundle.decoding import Decoding
from xattn_runtime.generate.options import DecodingOptions

BUNDLE = Decoding((2,), (3,), 0, 12)
OF_BEAMS = ("length_penalty", "early_stopping")
SHARED = sorted({field.name for field in fields(DecodingOptions)} & {field.name for field in fields(Decoding)})


def another_value(name: str) -> int | float | bool:
    """A value that is neither the default nor what the bundle says."""
    default = next(field.default for field in fields(Decoding) if field.name == name)
    value = getattr(BUNDLE, name) if default is MISSING else default
    return not value if isinstance(value, bool) else value + 1 if name != "max_new_tokens" else value - 1


def options_with(name: str) -> DecodingOptions:
    beams = {"beams": 3} if name in OF_BEAMS else {}
    return DecodingOptions(**(beams | {name: another_value(name)}))  # type: ignore[arg-type]


@pytest.mark.parametrize("name", SHARED)
def test_an_option_replaces_the_setting_of_its_name(name: str) -> None:
    settings = options_with(name).apply_to(BUNDLE, ())
    assert getattr(settings, name) == another_value(name) != getattr(BUNDLE, name)


@pytest.mark.parametrize("name", [name for name in SHARED if name not in ("beams", "max_new_tokens", *OF_BEAMS)])
def test_an_option_of_scores_is_not_plain_greedy_search(name: str) -> None:
    assert BUNDLE.is_plain
    assert not options_with(name).apply_to(BUNDLE, ()).is_plain
