"""Every role in both forms, and the exporter's silent failures, each of which must be loud here."""

import subprocess
import sys
import warnings
from dataclasses import replace

import onnx
import pytest
import torch

from xattn_export import to_onnx
from xattn_export.graph.conformance import examine
from xattn_export.parity import check_parity
from xattn_export.to_onnx import choose_opset, export_role
from xattn_runtime.errors import UserError, XattnError


@pytest.mark.parametrize(
    ("kind", "name", "attention", "opset", "attentions"),
    [
        ("caption", "image_encoder", "standard", 23, 1),
        ("caption", "decoder", "standard", 23, 4),
        ("caption", "decoder", "decomposed", 18, 0),
        ("caption", "image_encoder", "decomposed", 24, 0),
        ("lstm", "classifier", "standard", 23, 2),
        ("lstm", "classifier", "decomposed", 18, 0),
        ("transformer", "classifier", "standard", 24, 3),
        ("transformer", "classifier", "decomposed", 20, 0),
    ],
)
def test_forms(role, graph, kind, name, attention, opset, attentions):
    """Exported as asked, standard, and equal to torch at every length and batch."""
    model = graph(kind, name, attention, opset)
    facts = examine(model)
    assert (facts.opset, facts.standard, facts.domains, facts.precision) == (opset, True, ("ai.onnx",), "fp32")
    assert facts.operators.get("Attention", 0) == attentions
    assert facts.operators.get("LSTM", 0) == (kind == "lstm")
    assert model.ir_version <= 10
    assert not model.functions
    parity = check_parity(model, role(kind, name))
    assert parity.largest_error < 2e-5
    assert parity.cases == {"image_encoder": 2, "decoder": 13, "classifier": 8}[name]


def test_a_graph_tells_nothing_of_the_machine(graph):
    content = graph("lstm", "classifier", "decomposed", 18).SerializeToString()
    for trace in (b".py", b"/home", b"/tmp", b"File ", b"ClassifierGraph", b"pkg.torch"):
        assert trace not in content


@pytest.mark.usefixtures("export_anew")
def test_export_is_quiet_and_leaks_no_warning(role, capfd):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        export_role(role("lstm", "image_encoder"), "standard", 23)
    captured = capfd.readouterr()
    assert (captured.out, captured.err) == ("", "")


@pytest.mark.parametrize(("attention", "expected"), [("standard", 23), ("decomposed", 18)])
def test_default_opset(attention, expected):
    assert choose_opset(attention, None) == expected


@pytest.mark.parametrize(
    ("attention", "opset", "words"),
    [
        ("standard", 22, "expected 23 to 24 with --attention standard, found 22"),
        ("standard", 18, "decomposed allows 18 and later"),
        ("decomposed", 17, "expected 18 to 24"),
        ("decomposed", 99, "expected 18 to 24"),
        ("fused", 23, "expected one of standard, decomposed"),
    ],
)
def test_impossible_combinations(attention, opset, words):
    with pytest.raises(UserError, match=words):
        choose_opset(attention, opset)


def test_another_opset_than_asked_is_an_error(role, monkeypatch):
    """torch falls back to an opset of its own without a word."""
    real = torch.onnx.export
    monkeypatch.setattr(torch.onnx, "export", lambda *args, **options: real(*args, **options | {"opset_version": 18}))
    with pytest.raises(XattnError, match="image_encoder: expected opset 23, found 18"):
        export_role(role("lstm", "image_encoder"), "decomposed", 20)


def test_inputs_that_share_a_tensor_are_an_error(role, monkeypatch):
    """torch drops all of them but one."""
    shared: dict[tuple[object, ...], torch.Tensor] = {}
    real = to_onnx.example_tensor
    monkeypatch.setattr(
        to_onnx,
        "example_tensor",
        lambda spec, sizes, generator: shared.setdefault(spec.shape, real(spec, sizes, generator)),
    )
    with pytest.raises(XattnError, match="decoder: "):
        export_role(role("caption", "decoder"), "standard", 23)


def test_an_input_that_is_not_used_is_an_error(role):
    class Forgetful(torch.nn.Module):
        def forward(self, input_ids, attention_mask, *cross):
            logits = cross[0].mean((1, 2, 3))[:, None] + input_ids[:, :1]
            return logits, logits.softmax(-1)

    with pytest.raises(XattnError, match="every input to be used, found these unused: attention_mask"):
        export_role(replace(role("lstm", "classifier"), module=Forgetful(), attends=False), "standard", 23)


def test_a_frozen_axis_is_an_error(role):
    class Frozen(torch.nn.Module):
        def forward(self, pixel_values):
            cross = pixel_values.flatten()[: 2 * 4 * 16 * 16].reshape(2, 4, 16, 16)
            return tuple(cross + i for i in range(4))

    with pytest.raises(XattnError, match="image_encoder: "):
        export_role(replace(role("lstm", "image_encoder"), module=Frozen()), "standard", 23)


def test_missing_attention_is_an_error(role):
    with pytest.raises(XattnError, match="expected the operator Attention, found none"):
        export_role(replace(role("lstm", "image_encoder"), attends=True), "standard", 23)


def test_what_torch_cannot_export_is_one_line(role):
    class Impossible(torch.nn.Module):
        def forward(self, pixel_values):
            return pixel_values if pixel_values.sum() > 0 else -pixel_values

    with pytest.raises(XattnError, match="image_encoder: torch cannot export it") as caught:
        export_role(replace(role("lstm", "image_encoder"), module=Impossible()), "standard", 23)
    assert "\n" not in str(caught.value)


def test_dynamic_axes_are_named(graph):
    model = graph("caption", "decoder", "standard", 23)
    shapes = {
        tensor.name: [axis.dim_param or axis.dim_value for axis in tensor.type.tensor_type.shape.dim]
        for tensor in model.graph.input
    }
    assert shapes["input_ids"] == ["batch", "length"]
    assert shapes["past_key_1"] == ["batch", 4, "past", 16]
    assert shapes["cross_value_0"] == ["batch", 4, 16, 16]
    onnx.checker.check_model(model, full_check=True)


def test_importing_the_package_loads_nothing_heavy():
    script = (
        "import sys, xattn_export\n"
        "assert dir(xattn_export) == sorted(xattn_export.__all__) == list(xattn_export.__all__)\n"
        "assert not [name for name in ('torch', 'onnx', 'onnxruntime', 'numpy') if name in sys.modules]\n"
        "assert all(getattr(xattn_export, name) for name in xattn_export.__all__)"
    )
    subprocess.run([sys.executable, "-c", script], check=True, env={"PYTHONPATH": ":".join(sys.path)})
