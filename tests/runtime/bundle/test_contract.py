from __future__ import annotations

import pytest

from xattn_runtime.bundle.contract import (
    cross_names,
    image_names,
    layers_of,
    past_names,
    prefix_names,
    present_names,
    role_contract,
    state_names,
    states_of,
)

PIXELS, TEXT, NEXT = ["pixel_values"], ["input_ids", "attention_mask"], ["logits", "next_token", "next_log_prob"]


@pytest.mark.parametrize(
    ("role", "inputs", "outputs"),
    [
        ("image_encoder", PIXELS, cross_names(3)),
        ("image_encoder", PIXELS, prefix_names(3)),
        ("image_encoder", PIXELS, image_names(3)),
        ("image_encoder", PIXELS, ["image_embeddings"]),
        ("image_encoder", PIXELS, ["image_tokens"]),
        ("text_encoder", [*TEXT, *image_names(2)], cross_names(3)),
        ("text_encoder", [*TEXT, "image_tokens"], cross_names(3)),
        ("text_encoder", TEXT, ["text_embeddings"]),
        ("decoder", ["input_ids", *past_names(3), *cross_names(3)], [*NEXT, *present_names(3)]),
        ("decoder", ["input_ids", *past_names(3), *cross_names(1)], [*NEXT, *present_names(3)]),
        ("decoder", ["input_ids", *past_names(3)], [*NEXT, *present_names(3)]),
        ("decoder", ["input_ids", "image_tokens", *past_names(3)], [*NEXT, *present_names(3)]),
        (
            "decoder",
            ["input_ids", "image_tokens", *past_names(2), *state_names("past", 3)],
            [*NEXT, *present_names(2), *state_names("present", 3)],
        ),
        ("classifier", [*TEXT, *cross_names(2)], ["logits", "probabilities"]),
    ],
)
def test_every_form_is_told_from_its_names(role: str, inputs: list[str], outputs: list[str]) -> None:
    contract = role_contract(role, inputs, outputs)
    assert list(contract.inputs) == inputs
    assert list(contract.outputs) == outputs
    for broken in (name for name in (*inputs, *outputs) if not name.endswith("_0") and name != "image_tokens"):
        fewer = [name for name in inputs if name != broken], [name for name in outputs if name != broken]
        found = role_contract(role, *fewer)
        assert (set(found.inputs), set(found.outputs)) != tuple(map(set, fewer)), broken


def test_what_has_no_layer_lacks_the_first() -> None:
    contract = role_contract("decoder", ["input_ids"], NEXT)
    assert list(contract.inputs) == ["input_ids", "past_key_0", "past_value_0"]
    assert "present_value_0" in contract.outputs


def test_presents_are_as_many_as_pasts() -> None:
    contract = role_contract("decoder", ["input_ids", *past_names(2)], [*NEXT, *present_names(5)])
    assert list(contract.outputs) == [*NEXT, *present_names(2)]


def test_layers_are_counted_by_their_keys() -> None:
    assert layers_of("past", [*past_names(4), *cross_names(2)]) == 4
    assert layers_of("prefix", past_names(4)) == 0
    assert layers_of("past", state_names("past", 4)) == 0
    assert states_of("past", [*past_names(4), *state_names("past", 3)]) == 3


def test_states_after_a_step_are_as_many_as_before_it() -> None:
    inputs = ["input_ids", *past_names(2), *state_names("past", 2)]
    contract = role_contract("decoder", inputs, [*NEXT, *present_names(2), *state_names("present", 5)])
    assert list(contract.outputs) == [*NEXT, *present_names(2), *state_names("present", 2)]
    loop = role_contract("generator", [*inputs, "max_new_tokens"], ["token_ids", "log_probs"])
    assert "past_conv_1" in loop.inputs
    assert list(loop.outputs) == ["token_ids", "log_probs"]
