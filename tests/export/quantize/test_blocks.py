"""int4: weights of products in blocks, the numbers that come back, and what ONNX Runtime makes of them."""

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from xattn_export import inspect_path, quantize_bundle
from xattn_export.quantize.base.rounding import Grid, round_weights
from xattn_export.quantize.modes.table import mode_names
from xattn_export.quantize.passes.blocks import STORE_4_BIT_BLOCKS, STORE_8_BIT_BLOCKS
from xattn_runtime.bundle.folder import open_bundle
from xattn_runtime.errors import UserError
from xattn_runtime.verify.golden import verify_bundle

BLOCK = 32
GRID = Grid(4, BLOCK)


def product(rows=96, columns=64):
    weights = np.random.default_rng(rows).normal(size=(rows, columns)).astype(np.float32)
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"], name="product")],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", rows])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", columns])],
        [numpy_helper.from_array(weights, "w")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    return model, weights


def test_the_product_is_that_of_the_rounded_weights(passed):
    model, weights = product()
    draft = passed(model, STORE_4_BIT_BLOCKS)
    assert draft.counts == {"int4_products": 1}
    model = draft.graph.model()
    onnx.checker.check_model(model, full_check=True)
    x = np.random.default_rng(2).normal(size=(3, 96)).astype(np.float32)
    expected = x @ round_weights(weights, GRID, "fitted").restored()
    assert ReferenceEvaluator(model).run(None, {"x": x})[0] == pytest.approx(expected, abs=1e-4)
    found = run_on_onnxruntime(model, x, qdq_matmulnbits_accuracy_level="1")
    assert found == pytest.approx(expected, abs=1e-3)


def run_on_onnxruntime(model, x, **entries):
    options = onnxruntime.SessionOptions()
    for name, value in entries.items():
        options.add_session_config_entry(f"session.{name}", value)
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return session.run(None, {"x": x})[0]


@pytest.mark.parametrize("wide_sums", ["0", "1"])
@pytest.mark.parametrize("bits", [4, 8])
def test_blocks_on_processors_that_need_wide_sums_and_on_those_that_do_not(passed, bits, wide_sums):
    model, weights = product()
    others = weights[:, ::-1].copy()
    model.graph.initializer.append(numpy_helper.from_array(others, "v"))
    model.graph.node.append(helper.make_node("MatMul", ["x", "v"], ["z"], name="other"))
    model.graph.node.append(helper.make_node("Mul", ["y", "z"], ["both"], name="both"))
    model.graph.output[0].name = "both"
    draft = passed(model, {4: STORE_4_BIT_BLOCKS, 8: STORE_8_BIT_BLOCKS}[bits])
    assert list(draft.counts.values()) == [2]
    model = draft.graph.model()
    onnx.checker.check_model(model, full_check=True)
    x = np.random.default_rng(2).normal(size=(3, 96)).astype(np.float32)
    first, second = (round_weights(one, Grid(bits, BLOCK), "fitted").restored() for one in (weights, others))
    expected = (x @ first) * (x @ second)
    found = run_on_onnxruntime(model, x, x64quantprecision=wide_sums, qdq_matmulnbits_accuracy_level="1")
    assert found == pytest.approx(expected, rel=1e-3, abs=1e-2)


@pytest.mark.parametrize(("rows", "columns"), [(BLOCK + 8, 200), (BLOCK, 8)])
def test_what_does_not_divide_or_is_small_stays(passed, rows, columns):
    model, _ = product(rows, columns)
    draft = passed(model, STORE_4_BIT_BLOCKS)
    assert draft.counts == {"int4_products": 0}
    assert draft.graph.model() == model


@pytest.fixture(scope="module")
def mixed(exported, tmp_path_factory):
    """The captioning bundle, its decoder in int4, and the report."""
    output = tmp_path_factory.mktemp("mixed") / "mixed.xattn"
    return output, quantize_bundle(exported["caption"], output, components={"decoder": "int4"}).to_dict()


def test_every_component_has_the_mode_asked_for(mixed):
    output, report = mixed
    manifest = open_bundle(output).manifest
    assert {role: graph.precision for role, graph in manifest.graphs.items()} == {
        "image_encoder": "int8",
        "decoder": "int4",
        "generator": "int4",
        "whole": "int4",
        "whole_text": "int4",
    }
    assert manifest.session_options == {"session.qdq_matmulnbits_accuracy_level": "4"}
    graphs = inspect_path(output).to_dict()["graphs"]
    assert {role: graph["precision"] for role, graph in graphs.items()} == {
        "image_encoder": "int8",
        "decoder": "int4",
        "generator": "int4",
        "whole": "int4",
        "whole_text": "int4",
    }
    assert graphs["decoder"]["domains"] == ["ai.onnx"]
    assert report["graphs"]["decoder"]["int4_products"] == graphs["decoder"]["operators"]["DequantizeLinear"] > 0
    assert report["graphs"]["image_encoder"]["int4_products"] == 0
    assert verify_bundle(output).passed


@pytest.mark.parametrize(
    ("kind", "options", "message"),
    [
        (
            "caption",
            {"components": {"encoder": "int4"}},
            "component: expected one of image_encoder, decoder, found 'enc",
        ),
        (
            "caption",
            {"components": {"decoder": "int2"}},
            f"component decoder: expected one of {', '.join(mode_names())}, found 'i",
        ),
        (
            "lstm",
            {"mode": "int4"},
            "int4: expected graphs of opset 21 or later, found 18; export it again with --opset",
        ),
    ],
)
def test_mistakes(exported, tmp_path, kind, options, message):
    with pytest.raises(UserError, match=message):
        quantize_bundle(exported[kind], tmp_path / "out.xattn", **options)
    assert list(tmp_path.iterdir()) == []
