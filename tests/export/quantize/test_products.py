"""int8 products on processors that sum pairs of them in 16 bits: exact, without an option, and in every scope."""

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from xattn_export.quantize.base.rounding import ROUNDINGS, Grid, round_weights
from xattn_export.quantize.passes.products import COLUMNS, QUANTIZE_PRODUCTS

RNG = np.random.default_rng(0)
ROWS, WIDTH = 97, 64


def weights(kind):
    """All that could overflow: the largest everywhere; beside such as a model has."""
    if kind == "random":
        return RNG.normal(size=(ROWS, WIDTH)).astype(np.float32)
    signs = np.where(np.arange(WIDTH) % 2, -1, 1) if kind == "equal" else np.where(np.arange(ROWS) % 2, -1, 1)[:, None]
    return np.broadcast_to(signs, (ROWS, WIDTH)).astype(np.float32)


@pytest.mark.parametrize("kind", ["random", "equal", "alternating"])
@pytest.mark.parametrize("rounding", ROUNDINGS)
def test_pairs_stay_within_bounds_and_near(rounding, kind):
    before = weights(kind)
    x = RNG.normal(size=(300, ROWS)).astype(np.float32)
    rounded = round_weights(before, COLUMNS, rounding, x.T @ x / len(x))
    values = rounded.values.astype(int)
    assert np.abs(values).max() <= 127
    assert np.abs(values[: ROWS - 1 : 2] + values[1::2]).max() <= 128
    assert np.abs(rounded.restored() - before).max() < 0.02 * np.abs(before).max()


def test_only_what_must_is_clipped():
    """Neighbours of opposite signs keep all levels, and so does a last row that has none."""
    plain = round_weights(weights("alternating"), Grid(8, 0), "nearest")
    paired = round_weights(weights("alternating"), COLUMNS, "nearest")
    assert np.array_equal(plain.values, paired.values)


def product(passed, kind, *, in_a_loop):
    """`x` times constant weights, which lie outside the loop that computes it where there is one."""
    shape = [1, ROWS]
    factor = numpy_helper.from_array(weights(kind), "w")
    x, y = helper.make_tensor_value_info("x", TensorProto.FLOAT, shape), ("y", TensorProto.FLOAT, [1, WIDTH])
    node = helper.make_node("MatMul", ["x", "w"], ["y"], name="product")
    inner = helper.make_graph([node], "g", [x], [helper.make_tensor_value_info(*y)], [factor])
    model = helper.make_model(inner, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    draft = passed(model, QUANTIZE_PRODUCTS)
    assert draft.counts == {"int8_products": 1}
    model = draft.graph.model()
    if not in_a_loop:
        return model
    states = [("turn", TensorProto.INT64, []), ("go", TensorProto.BOOL, [])]
    body = helper.make_graph(
        [helper.make_node("Identity", ["go"], ["on"]), *model.graph.node],
        "body",
        [helper.make_tensor_value_info(*each) for each in states],
        [helper.make_tensor_value_info("on", TensorProto.BOOL, []), helper.make_tensor_value_info(*y)],
    )
    outer = helper.make_graph(
        [
            helper.make_node("Loop", ["turns", ""], ["all"], body=body),
            helper.make_node("Squeeze", ["all", "first"], ["result"]),
        ],
        "g",
        [x],
        [helper.make_tensor_value_info("result", TensorProto.FLOAT, [1, WIDTH])],
        [
            *model.graph.initializer,
            numpy_helper.from_array(np.array(1), "turns"),
            numpy_helper.from_array(np.array([0]), "first"),
        ],
    )
    return helper.make_model(outer, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)


@pytest.mark.parametrize("in_a_loop", [False, True])
@pytest.mark.parametrize("kind", ["random", "equal", "alternating"])
def test_the_sums_are_exact_without_an_option(passed, kind, in_a_loop):
    """Activations at the end of their range, as bytes 255, where 16 bits are nearest to overflowing."""
    model = product(passed, kind, in_a_loop=in_a_loop)
    onnx.checker.check_model(model, full_check=True)
    x = np.ones((1, ROWS), np.float32)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    assert session.run(None, {"x": x})[0] == pytest.approx(x @ restored(model), abs=1e-3)


def restored(model):
    """The weights that `model` holds as bytes."""
    constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    return constants["w_int8"].astype(np.float32) * constants["w_scale"]
