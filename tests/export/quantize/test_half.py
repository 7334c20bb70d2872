"""Half precision: what would overflow in it stays in float32."""

import numpy as np
import pytest
from onnx import ModelProto, TensorProto, helper, parser
from onnx.reference import ReferenceEvaluator

from xattn_export.graph.editing import graph_parts
from xattn_export.quantize.base.passing import Assignment, Draft
from xattn_export.quantize.passes.half import convert_to_half, overflowing_nodes, with_sums_of_squares

NORMALIZATIONS = {
    "LayerNormalization": "float[N, 96] y = LayerNormalization(x, scale)",
    "RMSNormalization": "float[N, 96] y = RMSNormalization(x, scale)",
    "of several axes": "float[N, 96] y = LayerNormalization <axis = 0> (x, scale)",
    "ReduceL2": "float[N, 1] y = ReduceL2(x, axis)",
    "GroupNormalization": "float[N, 96] y = GroupNormalization <num_groups = 2> (x, scale, scale)",
}


def normalization(kind: str) -> ModelProto:
    """float32 `[N, 96]` → normalized."""
    output, _, call = NORMALIZATIONS[kind].partition(" y = ")
    model = parser.parse_model(
        f'<ir_version: 10, opset_import: ["" : 23]> g (float[N, 96] x) => ({output} y)'
        f" <int64[1] axis = {{1}}> {{ y = {call} }}"
    )
    model.graph.node[0].name = "norm"
    model.graph.initializer.append(helper.make_tensor("scale", TensorProto.FLOAT, [96], np.ones(96, np.float32)))
    return model


def values(largest: float) -> np.ndarray:
    """`[2, 96]`: a row that reaches ±largest, and a quiet one."""
    row = np.linspace(-largest, largest, 96, dtype=np.float32)
    return np.stack([row, row / 8])


def seen(model: ModelProto, x: np.ndarray) -> dict[str, float]:
    """Tensor → the largest magnitude, of all that is computed for `x`."""
    scanned = with_sums_of_squares(model)
    names = [name for node in scanned.graph.node for name in node.output]
    del scanned.graph.output[:]
    scanned.graph.output.extend(helper.make_tensor_value_info(name, TensorProto.UNDEFINED, None) for name in names)
    found = ReferenceEvaluator(scanned).run(None, {"x": x})
    return {"x": float(np.abs(x).max())} | {
        name: float(np.abs(value).max()) for name, value in zip(names, found, strict=True)
    }


@pytest.mark.parametrize("kind", NORMALIZATIONS)
def test_the_sum_of_squares_is_what_a_normalization_sums(kind):
    x = values(10)
    expected = {
        "of several axes": (x**2).sum(),
        "GroupNormalization": (x.reshape(2, 2, 48) ** 2).sum(-1).max(),
    }.get(kind, (x**2).sum(-1).max())
    assert seen(normalization(kind), x)["y_squares"] == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize(("largest", "kept"), [(16, set()), (72, {"norm"})])
def test_a_normalization_stays_where_its_sum_of_squares_overflows(largest, kept):
    """At ±72 every value, and its square, is within half precision: only the sum, 170,000, is not."""
    model, x = normalization("LayerNormalization"), values(largest)
    wanted = ReferenceEvaluator(model).run(None, {"x": x})[0]
    overflowing = overflowing_nodes(graph_parts(model), seen(model, x))
    assert overflowing == kept
    draft = convert_to_half(Draft(graph_parts(model), float_nodes=frozenset(overflowing)), Assignment())
    assert draft.counts == {"fp16_nodes": 1 - len(kept)}
    np.testing.assert_allclose(ReferenceEvaluator(draft.graph.model()).run(None, {"x": x})[0], wanted, atol=4e-3)


def test_without_the_scan_it_overflows():
    """So the tests above compare with something: all in half precision, ONNX's own implementation gives zeros."""
    model, x = normalization("LayerNormalization"), values(72)
    draft = convert_to_half(Draft(graph_parts(model)), Assignment())
    with pytest.warns(RuntimeWarning, match="overflow"):
        assert np.abs(ReferenceEvaluator(draft.graph.model()).run(None, {"x": x})[0][0]).max() == 0


def test_nothing_is_added_where_nothing_is_normalized():
    model = parser.parse_model(
        '<ir_version: 10, opset_import: ["" : 23]> g (float[2] x) => (float[2] y) { y = Neg(x) }'
    )
    assert with_sums_of_squares(model) == model


POSITIONS = """<ir_version: 10, opset_import: ["" : 23]> g (float[N, 4] x, int64[N] places)
    => (float[N, 4] y, float[N, 4] z) <float[1] frequency = {0.7}, float one = {1.0}> {
    floats = Cast <to = 1> (places)
    column = Reshape(floats, shape)
    angle = Mul(column, frequency)
    cosine = Cos(angle)
    y = Mul(x, cosine)
    wave = Sin(x)
    z = Mul(wave, one)
}"""


def test_angles_of_positions_stay_in_float32():
    """What is computed of an input's floats does not: it has no position."""
    model = parser.parse_model(POSITIONS)
    model.graph.initializer.append(helper.make_tensor("shape", TensorProto.INT64, [2], [-1, 1]))
    inputs = {"x": values(1)[:1, :32].reshape(8, 4), "places": np.array([0, 1, 300, 2047, 2049, 3001, 9999, 70001])}
    wanted = ReferenceEvaluator(model).run(None, inputs)
    half = convert_to_half(Draft(graph_parts(model)), Assignment()).graph.model()
    for found, expected in zip(ReferenceEvaluator(half).run(None, inputs), wanted, strict=True):
        np.testing.assert_allclose(found, expected, atol=2e-3)
    cast = {node.output[0] for node in half.graph.node if node.op_type == "Cast"}
    assert {"x_fp16", "cosine_fp16"} <= cast
    assert "angle_fp16" not in cast
