"""Bias correction: what rounded weights give too little of on average is made up for."""

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from xattn_export.quantize.base.layers import Observed, Rounder
from xattn_export.quantize.base.options import GraphPlan, Options
from xattn_export.quantize.calibration.activation_statistics import calibrate
from xattn_export.quantize.calibration.observers import ChannelMeans
from xattn_export.quantize.passes.biases import correct_biases
from xattn_export.quantize.passes.blocks import quantize_blocks
from xattn_export.quantize.passes.products import quantize_products
from xattn_runtime.bundle.folder import open_bundle

RNG = np.random.default_rng(0)
WEIGHTS = RNG.normal(size=(96, 64)).astype(np.float32)
# Far from zero on average, as what comes out of a Gelu is.
X = (RNG.normal(size=(400, 96)) + 5 * RNG.normal(size=96)).astype(np.float32)


def product_with_bias(*, is_read_twice=False):
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["product"], name="product"),
        helper.make_node("Add", ["b", "product"], ["y"], name="bias"),
    ]
    outputs = ["y", "product"] if is_read_twice else ["y"]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 96])],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", 64]) for name in outputs],
        [numpy_helper.from_array(WEIGHTS, "w"), numpy_helper.from_array(np.ones(64, np.float32), "b")],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)


def error_of(model):
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    expected = X @ WEIGHTS + 1
    difference = session.run(["y"], {"x": X})[0] - expected
    return float(np.sqrt(np.mean(difference**2) / np.mean(expected**2)))


def rounder():
    return Rounder("nearest", Observed(means={"x": X.mean(axis=0)}))


@pytest.mark.parametrize(("quantize", "share"), [(quantize_products, 0.8), (quantize_blocks, 0.6)])
def test_errors_of_weights_no_longer_add_up(quantize, share):
    plain, corrected, one = product_with_bias(), product_with_bias(), rounder()
    assert quantize(plain) == quantize(corrected, rounder=one) == 1
    assert list(one.shifts) == ["product"]
    assert correct_biases(corrected, one.shifts) == 1
    onnx.checker.check_model(corrected, full_check=True)
    assert len(corrected.graph.node) == len(plain.graph.node)
    assert error_of(corrected) < share * error_of(plain)


def test_a_product_that_something_else_reads_stays():
    model, one = product_with_bias(is_read_twice=True), rounder()
    quantize_products(model, rounder=one)
    assert correct_biases(model, one.shifts) == 0
    assert next(numpy_helper.to_array(each) for each in model.graph.initializer if each.name == "b") == pytest.approx(1)


def test_the_mean_of_channels():
    means = ChannelMeans()
    assert means.mean() is None
    for part in np.split(X, 4):
        means.see(part.reshape(2, 50, 96))
    assert means.mean() == pytest.approx(X.mean(axis=0), abs=1e-4)


def test_golden_inputs_stand_in_for_data(exported):
    bundle = open_bundle(exported["caption"])
    plans = {role: GraphPlan("int8") for role in ("image_encoder", "decoder")}
    seen = calibrate(bundle, plans, Options(), None, lambda what, share: None)
    assert all(seen[role].observed.means for role in plans)
    assert not any(seen[role].observed.hessians for role in plans)
