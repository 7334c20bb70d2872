"""A table that is looked up and multiplied with is stored once, in every mode that makes both smaller."""

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from xattn_export.quantize.base.options import GraphPlan, Options
from xattn_export.quantize.base.passing import Observed
from xattn_export.quantize.calibration.result import Calibration
from xattn_export.quantize.quantizing import quantize_graph

WORDS, WIDTH = 300, 64


@pytest.fixture
def tied():
    """Looks words up and gives logits, with one table."""
    table = np.random.default_rng(0).normal(size=(WORDS, WIDTH)).astype(np.float32)
    nodes = [
        helper.make_node("Gather", ["table", "ids"], ["rows"], name="look"),
        helper.make_node("Relu", ["rows"], ["x"], name="relu"),
        helper.make_node("Transpose", ["table"], ["turned"], perm=[1, 0], name="turn"),
        helper.make_node("MatMul", ["x", "turned"], ["y"], name="head"),
    ]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("ids", TensorProto.INT64, ["batch", "length"])],
        [
            helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", "length", WORDS]),
            helper.make_tensor_value_info("rows", TensorProto.FLOAT, ["batch", "length", WIDTH]),
        ],
        [numpy_helper.from_array(table, "table")],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)


def run(model, ids):
    options = onnxruntime.SessionOptions()
    options.add_session_config_entry("session.qdq_matmulnbits_accuracy_level", "1")
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return session.run(None, {"ids": ids})


@pytest.mark.parametrize(
    ("mode", "options"),
    [
        ("int8", Options()),
        ("int8", Options(smooth=0.5)),
        ("int8-static", Options()),
        ("int8-weight", Options()),
        ("int8-weight", Options(symmetric=False, block=16)),
        ("int4", Options()),
    ],
)
def test_stored_once(tied, prepared, mode, options):
    ids = np.array([[3, 299, 0], [7, 8, 8]])
    expected = run(tied, ids)
    calibration = Calibration(Observed(ranges={"x": (0.0, 4.0)}))
    graph, counts = quantize_graph(prepared(tied), GraphPlan(mode), options, calibration)
    assert (counts["tied_tables"], counts["int8_embeddings"]) == (1, 1)
    model = graph.model()
    onnx.checker.check_model(model, full_check=True)
    tables = [tensor for tensor in model.graph.initializer if np.prod(tensor.dims) == WORDS * WIDTH]
    assert len(tables) == 1
    assert tables[0].data_type in (TensorProto.INT8, TensorProto.UINT8)
    for found, wanted in zip(run(model, ids), expected, strict=True):
        assert found.shape == wanted.shape
        assert np.sqrt(np.mean((found - wanted) ** 2) / np.mean(wanted**2)) < 0.02


def test_a_lookup_that_stays_fp32_shares_nothing(tied, prepared):
    plan = GraphPlan("int8", {"look": "fp32"})
    graph, counts = quantize_graph(prepared(tied), plan, Options(), Calibration())
    assert (counts["tied_tables"], counts["int8_embeddings"], counts["int8_products"]) == (0, 0, 1)
    assert sorted(
        tensor.data_type for tensor in graph.model().graph.initializer if np.prod(tensor.dims) == WORDS * WIDTH
    ) == [
        TensorProto.FLOAT,
        TensorProto.INT8,
    ]
