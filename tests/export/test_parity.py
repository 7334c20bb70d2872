"""A wrong graph does not pass: one that forgets, one that is slightly off, one that says nothing."""

from dataclasses import replace

import pytest
import torch
from onnx import helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from tests.export.conftest import ANSWERS
from xattn_export.parity import check_parity
from xattn_export.to_onnx import example_tensor
from xattn_runtime.errors import XattnError


def test_a_decoder_that_ignores_the_past_is_found(role, graph):
    """Right at past 0, wrong after."""
    decoder = role("caption", "decoder")

    def forgetful(input_ids, *caches):
        without = [cache[:, :, :0] for cache in caches[: len(caches) // 2]]
        outputs = decoder.reference(input_ids, *without, *caches[len(caches) // 2 :])
        present = [torch.cat((past, new), 2) for past, new in zip(caches, outputs[3:], strict=False)]
        return *outputs[:3], *present

    model = graph("caption", "decoder", "standard", 23)
    with pytest.raises(XattnError, match=r"decoder: batch 1, length 1, past 1: \w+: .* found a difference of"):
        check_parity(model, replace(decoder, reference=forgetful))


@pytest.mark.parametrize(("delta", "found"), [(1e-3, True), (float("nan"), True), (float("inf"), True), (1e-7, False)])
def test_an_altered_weight_is_found(role, graph, delta, found):
    classifier = role("lstm", "classifier")
    model = graph("lstm", "classifier", "decomposed", 18)
    bias = next(tensor for tensor in model.graph.initializer if list(tensor.dims) == [len(ANSWERS)])
    values = numpy_helper.to_array(bias).copy()
    values[1] += delta
    bias.CopyFrom(numpy_helper.from_array(values, bias.name))
    if found:
        with pytest.raises(XattnError, match="classifier: batch 1, length 1: logits"):
            check_parity(model, classifier)
    else:
        check_parity(model, classifier)


def test_gates_in_the_wrong_order_are_found(role, graph):
    classifier = role("lstm", "classifier")
    model = graph("lstm", "classifier", "decomposed", 18)
    lstm = next(node for node in model.graph.node if node.op_type == "LSTM")
    weights = next(tensor for tensor in model.graph.initializer if tensor.name == lstm.input[1])
    values = numpy_helper.to_array(weights)
    weights.CopyFrom(numpy_helper.from_array(values[:, ::-1].copy(), weights.name))
    with pytest.raises(XattnError, match="classifier: "):
        check_parity(model, classifier)


def test_padding_that_is_not_masked_is_found(role, graph):
    """Without the lengths, the LSTM's backward direction starts in the padding."""
    classifier = role("lstm", "classifier")
    model = graph("lstm", "classifier", "decomposed", 18)
    lstm = next(node for node in model.graph.node if node.op_type == "LSTM")
    del lstm.input[4:]
    with pytest.raises(XattnError, match=r"classifier: batch 3, length \d+: logits"):
        check_parity(model, classifier)


def test_a_graph_that_cannot_run_is_one_line(role):
    model = helper.make_model(helper.make_graph([], "empty", [], []), opset_imports=[helper.make_opsetid("", 18)])
    with pytest.raises(XattnError, match="decoder: "):
        check_parity(model, role("caption", "decoder"))


@pytest.mark.parametrize(
    ("kind", "name", "attention", "opset"),
    [
        ("caption", "image_encoder", "standard", 23),
        ("caption", "decoder", "decomposed", 18),
        ("caption", "decoder", "standard", 23),
        ("transformer", "classifier", "decomposed", 20),
    ],
)
def test_an_independent_engine_agrees(role, graph, kind, name, attention, opset):
    """onnx.reference implements the operators from their definition, in numpy."""
    this = role(kind, name)
    model = graph(kind, name, attention, opset)
    generator = torch.Generator().manual_seed(1)
    sizes = {"batch": 2, "length": 4, "past": 3}
    inputs = {spec.name: example_tensor(spec, sizes, generator) for spec in this.inputs}
    with torch.inference_mode():
        expected = this.reference(*inputs.values())
    evaluator = ReferenceEvaluator(model)
    found = evaluator.run(None, {name: tensor.numpy() for name, tensor in inputs.items()})
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(torch.from_numpy(one), other, atol=1e-4, rtol=1e-4)
