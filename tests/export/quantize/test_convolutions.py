"""Convolutions as int8 products: beside torch's convolution of the same rounded numbers, in float64."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import ModelProto, helper, numpy_helper
from torch.nn import functional as F

from xattn_export.graph.conformance import require_standard
from xattn_export.quantize.base.passing import Draft
from xattn_export.quantize.base.rounding import round_weights
from xattn_export.quantize.passes.convolutions import QUANTIZE_CONVOLUTIONS
from xattn_export.quantize.passes.products import COLUMNS

RNG = np.random.default_rng(0)
CHANNELS = 64


def conv_model(
    body: str, weights: dict[str, tuple[int, ...]], output: str = "float[batch,C,H,W] y", side: int = 7
) -> ModelProto:
    """A graph over `x`, `[batch, 64, side, side + 2]`, with random constants."""
    text = (
        f'<ir_version: 8, opset_import: ["" : 18]> net (float[batch,{CHANNELS},{side},{side + 2}] x) => ({output}) {{'
    )
    model = onnx.parser.parse_model(f"{text}{body}}}")
    for name, shape in weights.items():
        values = RNG.normal(size=shape).astype(np.float32)
        model.graph.initializer.append(numpy_helper.from_array(values, name))
    return model


def quantized(passed: Callable[..., Draft], model: ModelProto, count: int) -> ModelProto:
    """`model` after the pass, which must change `count` convolutions."""
    draft = passed(model, QUANTIZE_CONVOLUTIONS)
    assert draft.counts.get("int8_convolutions", 0) == count
    return draft.graph.model()


def run(model: ModelProto, x: np.ndarray) -> np.ndarray:
    """On ONNX Runtime, which must first find the graph valid."""
    onnx.checker.check_model(model, full_check=True)
    require_standard(model, "net")
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return np.asarray(session.run(None, {"x": x})[0])


def rounded_convolution(x: np.ndarray, weight: np.ndarray, bias: np.ndarray, **options: Any) -> np.ndarray:
    """The convolution of `x` and `weight` after both were rounded to 8 bits as the graph rounds them."""
    low, high = min(0.0, float(x.min())), max(0.0, float(x.max()))
    scale = np.float32(high - low) / np.float32(255)
    zero = np.clip(np.rint(-low / scale), 0, 255)
    levels = np.clip(np.rint(x / scale) + zero, 0, 255) - zero
    by_place = weight.transpose(2, 3, 1, 0)
    rounded = round_weights(by_place.reshape(-1, len(weight)), COLUMNS, "fitted").restored()
    near = rounded.reshape(by_place.shape).transpose(3, 2, 0, 1).astype(float)
    total = F.conv2d(torch.from_numpy(levels.astype(float)), torch.from_numpy(near), **options)
    return total.numpy() * float(scale) + bias[None, :, None, None]


@pytest.mark.parametrize(
    ("kernel", "strides", "pads"),
    [
        ((3, 3), (1, 1), (1, 1)),
        ((3, 3), (2, 2), (1, 1)),
        ((1, 1), (2, 2), (0, 0)),
        ((5, 3), (1, 2), (2, 0)),
        ((2, 2), (2, 2), (0, 0)),
    ],
)
@pytest.mark.parametrize("shift", [0.0, 3.0, -3.0])
def test_it_is_the_convolution_of_the_rounded_numbers(
    passed: Callable[..., Draft], kernel: tuple[int, int], strides: tuple[int, int], pads: tuple[int, int], shift: float
) -> None:
    """Also for values on one side of zero, where the padding must still be zero."""
    body = f"y = Conv<strides=[{strides[0]},{strides[1]}], pads=[{pads[0]},{pads[1]},{pads[0]},{pads[1]}]>(x, w, b)"
    model = conv_model(body, {"w": (160, CHANNELS, *kernel), "b": (160,)})
    weight, bias = (numpy_helper.to_array(tensor) for tensor in model.graph.initializer)
    x = (RNG.normal(size=(3, CHANNELS, 7, 9)) + shift).astype(np.float32)
    exact = run(model, x)
    model = quantized(passed, model, 1)
    assert "Conv" not in {node.op_type for node in model.graph.node}
    expected = rounded_convolution(x, weight, bias, stride=strides, padding=pads)
    found = run(model, x)
    # A value that lies between two levels may be rounded either way.
    assert np.abs(found - expected).max() < 2e-3 * np.abs(expected).max()
    assert 1e-4 < np.abs(found - exact).max() / np.abs(exact).max() < 0.05


RESIDUAL = """
    a = Conv<strides=[2,2], pads=[1,1,1,1]>(x, w1)
    r = Relu(a)
    c = Conv<pads=[1,1,1,1]>(r, w2, b2)
    s = Conv<strides=[2,2], group=2>(x, w3)
    t = Add(c, s)
    u = Relu(t)
"""


@pytest.mark.parametrize(
    ("end", "transpositions"), [("p = Transpose<perm=[0,2,1]>(f) y = Neg(p)", 2), ("y = Transpose<perm=[0,2,1]>(f)", 4)]
)
def test_between_convolutions_the_map_stays_position_by_position(
    passed: Callable[..., Draft], end: str, transpositions: int
) -> None:
    """A residual block whose result goes on as tokens: what comes in is transposed, and the shortcut in groups."""
    body = f"{RESIDUAL} f = Reshape(u, flat) {end}"
    weights = {"w1": (64, CHANNELS, 3, 3), "w2": (64, 64, 3, 3), "b2": (64,), "w3": (64, CHANNELS // 2, 1, 1)}
    model = conv_model(body, weights, "float[batch,20,64] y")
    model.graph.initializer.append(numpy_helper.from_array(np.array([0, 64, 20]), "flat"))
    x = RNG.normal(size=(2, CHANNELS, 7, 9)).astype(np.float32)
    exact = run(model, x)
    model = quantized(passed, model, 2)
    counts = Counter(node.op_type for node in model.graph.node)
    assert (counts["Transpose"], counts["Conv"], counts["DynamicQuantizeLinear"]) == (transpositions, 1, 2)
    assert np.abs(run(model, x) - exact).max() / np.abs(exact).max() < 0.05


def test_a_map_that_others_read_is_written_out(passed: Callable[..., Draft]) -> None:
    """As an output, for an operator that goes across positions, and for one that reads it flattened."""
    body = """
        a = Conv<pads=[1,1,1,1]>(x, w)
        m = GlobalAveragePool(a)
        f = Reshape(a, flat)
        s = ReduceMean<keepdims=1>(f, axis)
        y = Mul(a, m)
        z = Identity(s)
    """
    model = conv_model(body, {"w": (64, CHANNELS, 3, 3)}, "float[batch,64,7,9] y, float[batch,64,1] z")
    model.graph.initializer.append(numpy_helper.from_array(np.array([0, 64, 63]), "flat"))
    model.graph.initializer.append(numpy_helper.from_array(np.array([2]), "axis"))
    x = RNG.normal(size=(2, CHANNELS, 7, 9)).astype(np.float32)
    exact = run(model, x)
    model = quantized(passed, model, 1)
    assert np.abs(run(model, x) - exact).max() / np.abs(exact).max() < 0.05


@pytest.mark.parametrize(
    ("body", "weight"),
    [
        ("y = Conv<group=2, pads=[1,1,1,1]>(x, w)", (512, CHANNELS // 2, 3, 3)),
        ("y = Conv<dilations=[2,2], pads=[2,2,2,2]>(x, w)", (64, CHANNELS, 3, 3)),
        ('y = Conv<auto_pad="SAME_UPPER">(x, w)', (64, CHANNELS, 3, 3)),
        ("y = Conv(x, w)", (8, CHANNELS, 1, 1)),
    ],
)
def test_others_stay_as_they_are(passed: Callable[..., Draft], body: str, weight: tuple[int, ...]) -> None:
    """In groups, dilated, padded by name, or too small to gain."""
    model = conv_model(body, {"w": weight})
    assert quantized(passed, model, 0) == model


def test_a_size_that_is_not_known_stays_as_it_is(passed: Callable[..., Draft]) -> None:
    """Rows are looked up by constants."""
    model = conv_model("y = Conv<pads=[1,1,1,1]>(x, w)", {"w": (64, CHANNELS, 3, 3)})
    model.graph.input[0].CopyFrom(helper.make_tensor_value_info("x", 1, ["batch", CHANNELS, "height", "width"]))
    assert quantized(passed, model, 0) == model
