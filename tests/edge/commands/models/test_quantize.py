"""`xattn-edge quantize`: what it asks the library for, and what it refuses itself."""

from types import SimpleNamespace

import pytest


@pytest.fixture
def asked(stand_in):
    """The options that the library was last asked for."""
    found = []

    def quantize_bundle(*_: object, **options: object) -> SimpleNamespace:
        found.append(options)
        return SimpleNamespace(to_dict=dict)

    stand_in("xattn_export", quantize_bundle=quantize_bundle)
    return found


@pytest.mark.parametrize(
    ("arguments", "rounding"),
    [
        ((), "fitted"),
        (("--data", "golden"), "fitted"),
        (("--data", "PICTURES"), "gptq"),
        (("--data", "PICTURES", "--rounding", "hqq"), "hqq"),
    ],
    ids=["alone", "golden", "pictures", "asked"],
)
def test_rounding_is_by_the_data_there_is(invoke, asked, vqa_bundle, arguments, rounding):
    arguments = [str(vqa_bundle / "golden") if word == "PICTURES" else word for word in arguments]
    assert invoke("quantize", vqa_bundle, "-o", "small.xattn", *arguments).exit_code == 0
    assert asked[-1]["options"].rounding == rounding


@pytest.mark.parametrize(
    "option", [("--budget", "0.01"), ("--prefer", "memory"), ("--plot", "a.svg")], ids=lambda option: option[0]
)
def test_options_of_a_search_alone(invoke, asked, vqa_bundle, option):
    result = invoke("quantize", vqa_bundle, "-o", "small.xattn", *option)
    message = f"error: {option[0]}: expected --mode auto beside it, found --mode int8\n"
    assert (result.exit_code, result.stdout, result.stderr, asked) == (2, "", message, [])
