"""Names of tensors without what wrapped a model in training."""

import pytest

from xattn_edge.models.wrappers import without_wrappers

MODEL = ("encoder.layer.0.weight", "encoder.layer.1.weight", "head.module.bias", "scale")
# What training wrapped → the names it wrote, and what is taken off.
WRAPPED = {
    "nothing": (lambda name: name, ""),
    "DataParallel": (lambda name: f"module.{name}", "module."),
    "torch.compile": (lambda name: f"_orig_mod.{name}", "_orig_mod."),
    "Lightning": (lambda name: f"model.{name}", "model."),
    "distillation": (lambda name: f"student.{name}", "student."),
    "peft": (lambda name: f"base_model.model.{name}", "base_model.model."),
    "both": (lambda name: f"module._orig_mod.{name}", "module._orig_mod."),
    "the other way round": (lambda name: f"_orig_mod.module.{name}", "_orig_mod.module."),
    "parts": (
        lambda name: name.replace("layer.", "layer._checkpoint_wrapped_module.").replace("head.", "head._orig_mod."),
        "_orig_mod._checkpoint_wrapped_module.",
    ),
    "parts and the whole": (
        lambda name: f"module.{name.replace('encoder.', 'encoder._orig_mod.')}",
        "_orig_mod. and module.",
    ),
}


def _known(names):
    return sum(name in MODEL for name in names)


@pytest.mark.parametrize("what", WRAPPED)
def test_what_wrapped_the_model_is_taken_off(what):
    wrap, taken = WRAPPED[what]
    tensors = {wrap(name): number for number, name in enumerate(MODEL)}
    assert without_wrappers(tensors, _known) == ({name: number for number, name in enumerate(MODEL)}, taken)


@pytest.mark.parametrize(
    "names",
    [
        ("student.scale", "teacher.scale"),  # two models: which of them, nobody says
        ("model.scale", "loss.weight"),
        ("a.b", "a.c"),
        ("scale", "module.other"),
        (),
    ],
)
def test_names_that_no_reading_makes_the_models_stay(names):
    tensors = dict.fromkeys(names, 0)
    assert without_wrappers(tensors, _known) == (tensors, "")


def test_a_models_own_first_part_stays():
    """As in a language model whose every name begins with `model.`."""
    tensors = {f"model.{name}": 0 for name in MODEL}
    own = {f"model.{name}" for name in MODEL}
    assert without_wrappers(tensors, lambda names: len(own & set(names))) == (tensors, "")
    twice = {f"model.{name}": 0 for name in own}
    assert without_wrappers(twice, lambda names: len(own & set(names))) == (tensors, "model.")
