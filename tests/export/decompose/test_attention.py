"""Rewritten `Attention` computes what the operator's own node tests, its reference and ONNX Runtime compute."""

import warnings
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import ModelProto, TensorProto, helper
from onnx.reference import ReferenceEvaluator

from xattn_export.decompose import decompose_attention
from xattn_export.graph.conformance import examine

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    from onnx.backend.test.case import node as node_tests
    from onnx.backend.test.case.node import attention as _attention  # noqa: F401  fills node_tests

CASES = {
    case.name: case
    for case in node_tests._NodeTestCases
    if any(node.op_type == "Attention" for node in case.model.graph.node)
}
IN_BFLOAT16 = {name for name in CASES if "bf16" in name}


def run(model: ModelProto, feeds: dict[str, np.ndarray]) -> list[np.ndarray]:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return session.run(None, feeds)


def without_sizes(model: ModelProto, kept: str) -> ModelProto:
    """A copy whose inputs and outputs have symbols for sizes (`rank`), or no rank either (`nothing`)."""
    copy = ModelProto()
    copy.CopyFrom(model)
    for tensor in (*copy.graph.input, *copy.graph.output):
        tensor_type = tensor.type.tensor_type
        if kept == "nothing":
            tensor_type.ClearField("shape")
        for axis, size in enumerate(tensor_type.shape.dim if kept == "rank" else ()):
            size.dim_param = f"{tensor.name}_{axis}"
    return copy


def assert_decomposed(model: ModelProto, opset: int) -> None:
    """Only standard operators that opset 18 has, valid at `opset`, and no Attention."""
    facts = examine(model)
    assert facts.standard
    assert facts.opset == opset
    assert "Attention" not in facts.operators
    for name in facts.operators:
        onnx.defs.get_schema(name, 18)
    onnx.shape_inference.infer_shapes(model, check_type=True, strict_mode=True)
    if all(output.type.tensor_type.HasField("shape") for output in model.graph.output):
        onnx.checker.check_model(model, full_check=True)


def test_there_are_as_many_node_tests_as_the_specification_has():
    assert len(CASES) == 93
    assert len(IN_BFLOAT16) == 5


@pytest.mark.parametrize("kept", ["everything", "rank", "nothing"])
@pytest.mark.parametrize("name", sorted(CASES.keys() - IN_BFLOAT16))
def test_node_test_of_the_operator(name, kept):
    case = CASES[name]
    opset = 18 if kept == "everything" else None
    model = decompose_attention(without_sizes(case.model, kept), opset=opset)
    assert_decomposed(model, opset or case.model.opset_import[0].version)
    for inputs, expected in case.data_sets:
        feeds = {tensor.name: value for tensor, value in zip(case.model.graph.input, inputs, strict=True)}
        for found, value in zip(run(model, feeds), expected, strict=True):
            assert found.dtype == value.dtype
            np.testing.assert_allclose(found, value, rtol=case.rtol, atol=case.atol)


@pytest.mark.parametrize("name", sorted(IN_BFLOAT16))
def test_node_test_in_bfloat16(name):
    """ONNX Runtime has no such kernels on CPU; the reference evaluator has."""
    case = CASES[name]
    model = decompose_attention(case.model, opset=18)
    assert_decomposed(model, 18)
    for inputs, expected in case.data_sets:
        feeds = {tensor.name: value for tensor, value in zip(case.model.graph.input, inputs, strict=True)}
        with np.errstate(invalid="ignore"):
            (found,) = ReferenceEvaluator(model).run(None, feeds)
        assert found.dtype == expected[0].dtype
        np.testing.assert_allclose(found.astype(np.float32), expected[0].astype(np.float32), rtol=2**-7)


@dataclass(frozen=True)
class Call:
    """A drawn `Attention`: `symbols` are the axes whose sizes the model does not tell."""

    opset: int
    packed: bool
    attributes: dict[str, Any]
    shapes: dict[str, tuple[str, ...]]
    sizes: dict[str, int]
    symbols: frozenset[str]
    mask: str
    element: int
    seed: int

    def model(self) -> ModelProto:
        elements = dict.fromkeys(self.shapes, self.element) | {"nonpad_kv_seqlen": TensorProto.INT64}
        if self.mask == "bool":
            elements["attn_mask"] = TensorProto.BOOL
        tensors = {
            name: helper.make_tensor_value_info(
                name, elements[name], [axis if axis in self.symbols else self.size(axis) for axis in shape]
            )
            for name, shape in self.shapes.items()
        }
        inputs = ["Q", "K", "V", "attn_mask", "past_key", "past_value", "nonpad_kv_seqlen"]
        outputs = ["Y", "present_key", "present_value", "scores"]
        node = helper.make_node(
            "Attention",
            [name if name in tensors else "" for name in (inputs if "nonpad_kv_seqlen" in tensors else inputs[:6])],
            [name if name in tensors else "" for name in outputs],
            **self.attributes,
        )
        graph = helper.make_graph(
            [node],
            "g",
            [tensors[name] for name in inputs if name in tensors],
            [tensors[name] for name in outputs if name in tensors],
        )
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", self.opset)], ir_version=10)

    def size(self, axis: str) -> int:
        return 1 if axis == "one" else int(np.prod([self.sizes[part] for part in axis.split("*")]))

    def feeds(self) -> dict[str, np.ndarray]:
        rng = np.random.default_rng(self.seed)
        dtype = helper.tensor_dtype_to_np_dtype(self.element)
        feeds: dict[str, np.ndarray] = {}
        for name in ("Q", "K", "V", "attn_mask", "past_key", "past_value", "nonpad_kv_seqlen"):
            if name not in self.shapes:
                continue
            shape = [self.size(axis) for axis in self.shapes[name]]
            feeds[name] = rng.normal(size=shape).astype(dtype)
            if name == "attn_mask" and self.mask == "bool":
                feeds[name] = rng.random(shape) < 0.6
            elif name == "attn_mask":
                feeds[name][rng.random(shape) < 0.4] = -np.inf
            elif name == "nonpad_kv_seqlen":
                feeds[name] = rng.integers(0, self.sizes["covered"] + 1, shape)
        return feeds


@st.composite
def calls(draw: st.DrawFn) -> Call:
    opset = draw(st.sampled_from([23, 24, 25]))
    packed = draw(st.booleans())
    cache = draw(st.sampled_from(["none", "past", "padded"] if opset >= 24 else ["none", "past"]))
    sizes = {axis: draw(st.integers(1, 3)) for axis in ("batch", "key_heads", "group", "width", "value_width")}
    sizes |= {axis: draw(st.integers(1, 5)) for axis in ("queries", "new")}
    sizes["past"] = draw(st.integers(0, 4)) if cache == "past" else 0
    sizes["keys"] = sizes["past"] + sizes["new"]
    sizes["covered"] = draw(st.integers(1, sizes["keys"])) if opset >= 24 else sizes["keys"]
    keys = "keys" if cache == "past" else "new"
    shapes: dict[str, tuple[str, ...]]
    if packed:
        shapes = {
            "Q": ("batch", "queries", "group*key_heads*width"),
            "K": ("batch", "new", "key_heads*width"),
            "V": ("batch", "new", "key_heads*value_width"),
            "Y": ("batch", "queries", "group*key_heads*value_width"),
        }
    else:
        shapes = {
            "Q": ("batch", "group*key_heads", "queries", "width"),
            "K": ("batch", "key_heads", "new", "width"),
            "V": ("batch", "key_heads", "new", "value_width"),
            "Y": ("batch", "group*key_heads", "queries", "value_width"),
        }
    if cache == "past":
        shapes["past_key"] = ("batch", "key_heads", "past", "width")
        shapes["past_value"] = ("batch", "key_heads", "past", "value_width")
        shapes["present_key"] = ("batch", "key_heads", keys, "width")
        shapes["present_value"] = ("batch", "key_heads", keys, "value_width")
    elif cache == "padded":
        shapes["nonpad_kv_seqlen"] = ("batch",)
    mask = draw(st.sampled_from(["none", "bool", "float"]))
    if mask != "none":
        last = "covered" if opset >= 24 and draw(st.booleans()) else keys
        full = ("batch", "group*key_heads", "queries")
        broadcast = tuple(draw(st.sampled_from([axis, "one"])) for axis in full)
        shapes["attn_mask"] = (*broadcast[draw(st.integers(0, 3)) :], last)
    if draw(st.booleans()):
        shapes["scores"] = ("batch", "group*key_heads", "queries", keys)
    axes = {axis for shape in shapes.values() for axis in shape} - {"one"}
    attributes: dict[str, Any] = {"is_causal": draw(st.integers(0, 1))}
    if packed:
        attributes |= {"q_num_heads": sizes["group"] * sizes["key_heads"], "kv_num_heads": sizes["key_heads"]}
    softcap = draw(st.sampled_from([0.0, 0.7]))
    # The reference caps raw scores too, against the specification.
    attributes |= {"softcap": softcap, "qk_matmul_output_mode": draw(st.integers(1 if softcap else 0, 3))}
    if draw(st.booleans()):
        attributes["scale"] = draw(st.sampled_from([0.0, 0.3, 1.0, 2.5]))
    if draw(st.booleans()):
        attributes["softmax_precision"] = draw(st.sampled_from([TensorProto.FLOAT, TensorProto.DOUBLE]))
    if opset >= 25:
        attributes |= {side: draw(st.integers(-1, 3)) for side in ("left_window_size", "right_window_size")}
    return Call(
        opset=opset,
        packed=packed,
        attributes=attributes,
        shapes=shapes,
        sizes=sizes,
        symbols=frozenset(draw(st.sets(st.sampled_from(sorted(axes))))),
        mask=mask,
        element=draw(st.sampled_from([TensorProto.FLOAT, TensorProto.DOUBLE])),
        seed=draw(st.integers(0, 2**32 - 1)),
    )


@settings(deadline=None, max_examples=150)
@given(calls())
def test_any_call_equals_the_reference(call):
    feeds = call.feeds()
    plain = dict(feeds)
    if "attn_mask" in feeds:  # the reference is wrong where causality meets a mask of one row for all queries
        *_, last = feeds["attn_mask"].shape
        shape = (*(call.size(axis) for axis in ("batch", "group*key_heads", "queries")), last)
        plain["attn_mask"] = np.broadcast_to(feeds["attn_mask"], shape)
    with np.errstate(invalid="ignore", over="ignore"), warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        expected = ReferenceEvaluator(call.model()).run(None, plain)
    model = decompose_attention(call.model(), opset=18)
    assert_decomposed(model, 18)
    names = [tensor.name for tensor in model.graph.output]
    for name, found, value in zip(names, run(model, feeds), expected, strict=True):
        np.testing.assert_allclose(found, value, rtol=1e-4, atol=2e-5, err_msg=name)
