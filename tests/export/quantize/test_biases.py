"""Bias correction: what rounded weights give too little of on average is made up for."""

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from xattn_export.quantize.base.options import GraphPlan, Options
from xattn_export.quantize.base.prepared import prepare_bundle
from xattn_export.quantize.calibration.activation_statistics import calibrate
from xattn_export.quantize.calibration.observers import ChannelMeans
from xattn_export.quantize.passes.biases import CORRECT_BIASES
from xattn_export.quantize.passes.blocks import STORE_4_BIT_BLOCKS
from xattn_export.quantize.passes.products import QUANTIZE_PRODUCTS
from xattn_runtime.bundle.folder import open_bundle
from xattn_runtime.progress import silent

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


# Products that nothing is known of are rounded as `fitted` has it, those with a mean to the nearest.
MEANS = {"x": X.mean(axis=0)}
NEAREST = Options(rounding="nearest")


@pytest.mark.parametrize(("quantize", "share"), [(QUANTIZE_PRODUCTS, 0.8), (STORE_4_BIT_BLOCKS, 0.6)])
def test_errors_of_weights_no_longer_add_up(passed, quantize, share):
    plain = passed(product_with_bias(), quantize)
    draft = passed(product_with_bias(), quantize, CORRECT_BIASES, options=NEAREST, means=MEANS)
    assert draft.counts == {**plain.counts, "corrected_biases": 1} and set(plain.counts.values()) == {1}
    assert list(draft.shifts) == ["product"]
    corrected = draft.graph.model()
    onnx.checker.check_model(corrected, full_check=True)
    assert len(corrected.graph.node) == len(plain.graph.nodes)
    assert error_of(corrected) < share * error_of(plain.graph.model())


def test_a_product_that_something_else_reads_stays(passed):
    model = product_with_bias(is_read_twice=True)
    draft = passed(model, QUANTIZE_PRODUCTS, CORRECT_BIASES, options=NEAREST, means=MEANS)
    assert draft.counts["corrected_biases"] == 0
    assert numpy_helper.to_array(draft.graph.tensors["b"]) == pytest.approx(1)


def test_the_mean_of_channels():
    means = ChannelMeans()
    assert means.mean() is None
    for part in np.split(X, 4):
        means.see(part.reshape(2, 50, 96))
    assert means.mean() == pytest.approx(X.mean(axis=0), abs=1e-4)


def test_golden_inputs_stand_in_for_data(exported):
    bundle = open_bundle(exported["caption"])
    plans = {role: GraphPlan("int8") for role in ("image_encoder", "decoder")}
    calibrations = calibrate(prepare_bundle(bundle), plans, Options(), None, silent)
    assert all(calibrations[role].observed.means for role in plans)
    assert not any(calibrations[role].observed.hessians for role in plans)
