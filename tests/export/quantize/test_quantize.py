"""Quantized bundles: smaller, standard, and honest about what was lost."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from xattn_export import inspect_path, quantize_bundle
from xattn_export.graph.editing import graph_parts
from xattn_export.quantize import bundle as quantize
from xattn_export.quantize.base.products import prepare_products
from xattn_export.quantize.modes.table import mode_names
from xattn_export.quantize.passes.products import QUANTIZE_PRODUCTS
from xattn_export.quantize.passes.weights import STORE_CONVOLUTIONS, STORE_EMBEDDINGS
from xattn_runtime.bundle.folder import open_bundle
from xattn_runtime.errors import BundleError, OutputError, UserError, XattnError
from xattn_runtime.verify.golden import verify_bundle


@pytest.fixture(scope="module")
def quantized(exported, reads, once, tmp_path_factory):
    """kind → (bundle, report). Without data to calibrate on, each graph is read and prepared once, too."""
    folder = tmp_path_factory.mktemp("quantized")
    made = {}
    for kind, path in exported.items():
        with reads(path) as counts:
            report = quantize_bundle(path, folder / f"{kind}.xattn", command="pytest").to_dict()
        assert counts == once(path)
        made[kind] = folder / f"{kind}.xattn", report
    return made


@pytest.mark.parametrize("kind", ["caption", "lstm"])
def test_smaller_standard_and_verified(quantized, exported, kind):
    path, report = quantized[kind]
    assert json.loads(json.dumps(report)) == report
    assert report["bytes_after"] == sum(entry.bytes for entry in open_bundle(path).manifest.files.values())
    # In models this small a part of the bytes is the structure of the whole model's graphs, which stays.
    assert report["ratio"] < 0.7
    inspected = inspect_path(path).to_dict()
    assert inspected["standard"] is True
    old = inspect_path(exported[kind]).to_dict()["graphs"]
    assert inspected["graphs"].keys() - report["graphs"].keys() <= {"generator", "whole", "whole_text"}
    for role, made in report["graphs"].items():
        graph = inspected["graphs"][role]
        assert graph["precision"] == "int8"
        assert graph["opset"] == old[role]["opset"]
        assert graph["domains"] == ["ai.onnx"]
        assert graph["bytes"] < 0.6 * old[role]["bytes"]
        assert graph["operators"]["MatMulInteger"] == made["int8_products"] + made["int8_convolutions"]
        assert graph["operators"].get("LSTM") == old[role]["operators"].get("LSTM")
    assert verify_bundle(path).passed


def test_the_manifest_says_what_was_done(quantized, exported):
    path, report = quantized["caption"]
    old, new = open_bundle(exported["caption"]).manifest, open_bundle(path).manifest
    assert {graph.precision for graph in new.graphs.values()} == {"int8"}
    assert new.provenance.from_bundle is not None
    assert new.provenance.from_bundle.startswith("caption.xattn sha256:")
    assert new.provenance.source_sha256 == old.provenance.source_sha256
    assert new.golden.relative_rms == report["relative_rms"] >= 2 * report["largest_relative_rms"] > 0
    kept = [case for case in old.golden.cases if case in new.golden.cases]
    assert list(new.golden.cases) == kept
    for case in new.golden.cases:
        assert (path / case.tensors).read_bytes() == (exported["caption"] / case.tensors).read_bytes()
    assert new.session_options == {}


def test_what_is_stored_as_bytes(quantized):
    _, report = quantized["caption"]
    assert report["graphs"]["image_encoder"]["int8_convolutions"] > 0
    assert report["graphs"]["decoder"]["int8_embeddings"] == 1


def test_a_changed_text_is_dropped_and_told(exported, tmp_path, monkeypatch):
    real = quantize.measure

    def first_changed(task):
        measures = real(task)
        return (replace(measures[0], found_text="something else", relative_rms=1e-4), *measures[1:])

    monkeypatch.setattr(quantize, "measure", first_changed)
    report = quantize_bundle(exported["lstm"], tmp_path / "small.xattn")
    cases = open_bundle(exported["lstm"]).manifest.golden.cases
    assert report.golden_cases == len(cases) - 1
    assert len(report.dropped_cases) == 1 and not report.near_ties
    assert "'something else'" in report.dropped_cases[0]
    assert not (tmp_path / "small.xattn" / cases[0].tensors).exists()
    assert verify_bundle(tmp_path / "small.xattn").passed


def changed_all(monkeypatch, error):
    """Every golden text is found another, with logits that differ by `error`."""
    real = quantize.measure

    def changed(task):
        return tuple(replace(one, found_text="x", relative_rms=error) for one in real(task))

    monkeypatch.setattr(quantize, "measure", changed)


def test_near_ties_compare_logits_alone(exported, tmp_path, monkeypatch):
    changed_all(monkeypatch, 0.5)
    report = quantize_bundle(exported["lstm"], tmp_path / "small.xattn")
    cases = open_bundle(tmp_path / "small.xattn").manifest.golden.cases
    assert report.golden_cases == len(report.near_ties) == len(cases) and not report.dropped_cases
    assert {case.text for case in cases} == {None}
    assert verify_bundle(tmp_path / "small.xattn").passed


def test_every_text_changed_is_an_error(exported, tmp_path, monkeypatch):
    changed_all(monkeypatch, 1e-4)
    with pytest.raises(XattnError, match="found that every one changes"):
        quantize_bundle(exported["lstm"], tmp_path / "small.xattn")
    assert list(tmp_path.iterdir()) == []


def test_mistakes(quantized, exported, tmp_path):
    output = tmp_path / "small.xattn"
    with pytest.raises(UserError, match=f"mode: expected one of {', '.join(mode_names())}, found 'int3'"):
        quantize_bundle(exported["lstm"], output, mode="int3")
    with pytest.raises(UserError, match="is int8 already"):
        quantize_bundle(quantized["lstm"][0], output)
    with pytest.raises(BundleError, match="found nothing"):
        quantize_bundle(tmp_path / "none.xattn", output)
    for place in (exported["lstm"], exported["lstm"] / "inner.xattn"):
        with pytest.raises(OutputError, match="a place outside the bundle"):
            quantize_bundle(exported["lstm"], place, overwrite=True)
    output.mkdir()
    with pytest.raises(OutputError, match="already exists"):
        quantize_bundle(exported["lstm"], output)


def test_an_interrupt_leaves_nothing(exported, tmp_path, monkeypatch):
    def interrupt(path: Path) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(quantize, "verify_bundle", interrupt)
    with pytest.raises(KeyboardInterrupt):
        quantize_bundle(exported["lstm"], tmp_path / "small.xattn")
    assert list(tmp_path.iterdir()) == []


def graph_of(nodes, inputs, shape, **constants):
    """A model with float inputs and one output `y`."""
    return helper.make_model(
        helper.make_graph(
            nodes,
            "g",
            [helper.make_tensor_value_info(name, kind, axes) for name, (kind, axes) in inputs.items()],
            [helper.make_tensor_value_info("y", TensorProto.FLOAT, shape)],
            [numpy_helper.from_array(values, name) for name, values in constants.items()],
        ),
        opset_imports=[helper.make_opsetid("", 18)],
        ir_version=8,
    )


def run(model, **inputs):
    return ReferenceEvaluator(model).run(None, inputs)[0]


def normal(*shape):
    return np.random.default_rng(len(shape)).standard_normal(shape).astype(np.float32)


@pytest.mark.parametrize("transposed", [0, 1])
@pytest.mark.parametrize("bias", [False, True])
def test_gemm_becomes_a_product(passed, transposed, bias):
    constants = {"w": normal(64, 96).T.copy() if transposed else normal(64, 96)} | ({"b": normal(96)} if bias else {})
    node = helper.make_node("Gemm", ["x", *constants], ["y"], name="n", transB=transposed)
    model = graph_of([node], {"x": (TensorProto.FLOAT, ["n", 64])}, ["n", 96], **constants)
    x = normal(3, 64)
    expected = run(model, x=x)
    model = prepare_products(graph_parts(model)).model()
    assert [node.op_type for node in model.graph.node] == ["MatMul", "Add"][: 1 + bias]
    np.testing.assert_allclose(run(model, x=x), expected, atol=1e-5)
    draft = passed(model, QUANTIZE_PRODUCTS)
    assert draft.counts == {"int8_products": 1}
    model = draft.graph.model()
    onnx.checker.check_model(model, full_check=True)
    assert np.abs(run(model, x=x) - expected).max() < 0.03 * np.abs(expected).max()


def test_a_tied_head_is_a_product_of_its_own(passed):
    """The table is looked up and, transposed, multiplied with."""
    nodes = [
        helper.make_node("Gather", ["table", "ids"], ["rows"], name="look"),
        helper.make_node("Transpose", ["table"], ["turned"], perm=[1, 0], name="turn"),
        helper.make_node("MatMul", ["rows", "turned"], ["y"], name="head"),
    ]
    model = graph_of(nodes, {"ids": (TensorProto.INT64, ["n"])}, ["n", 300], table=normal(300, 64))
    ids = np.array([3, 299, 3])
    expected = run(model, ids=ids)
    draft = passed(prepare_products(graph_parts(model)).model(), STORE_EMBEDDINGS, QUANTIZE_PRODUCTS)
    assert draft.counts == {"int8_embeddings": 1, "int8_products": 1}
    model = draft.graph.model()
    onnx.checker.check_model(model, full_check=True)
    floats = [tensor for tensor in model.graph.initializer if tensor.data_type == TensorProto.FLOAT]
    assert max(np.prod(tensor.dims) for tensor in floats) == 300
    assert np.abs(run(model, ids=ids) - expected).max() < 0.03 * np.abs(expected).max()


def test_convolutions_are_stored_as_bytes_and_small_ones_left(passed):
    nodes = [
        helper.make_node("Conv", ["x", "large"], ["a"], name="one"),
        helper.make_node("Conv", ["a", "small"], ["y"], name="two"),
    ]
    large = normal(32, 16, 3, 3)
    large[5] = 0
    model = graph_of(
        nodes, {"x": (TensorProto.FLOAT, [1, 16, 8, 8])}, [1, 4, 6, 6], large=large, small=normal(4, 32, 1, 1)
    )
    x = normal(1, 16, 8, 8)
    expected = run(model, x=x)
    draft = passed(model, STORE_CONVOLUTIONS)
    assert draft.counts == {"int8_stored_convolutions": 1}
    model = draft.graph.model()
    onnx.checker.check_model(model, full_check=True)
    assert {tensor.name for tensor in model.graph.initializer} == {"large_int8", "large_channel_scale", "small"}
    assert np.abs(run(model, x=x) - expected).max() < 0.01 * np.abs(expected).max()


def test_a_convolution_of_single_positions_is_stored_as_rows(passed):
    node = helper.make_node("Conv", ["x", "shortcut"], ["y"], name="one", strides=[2, 2])
    model = graph_of([node], {"x": (TensorProto.FLOAT, [1, 64, 4, 4])}, [1, 64, 2, 2], shortcut=normal(64, 64, 1, 1))
    x = normal(1, 64, 4, 4)
    expected = run(model, x=x)
    draft = passed(model, STORE_CONVOLUTIONS)
    assert draft.counts == {"int8_stored_convolutions": 1}
    model = draft.graph.model()
    onnx.checker.check_model(model, full_check=True)
    assert list(next(tensor.dims for tensor in model.graph.initializer if tensor.name == "shortcut_int8")) == [64, 64]
    assert np.abs(run(model, x=x) - expected).max() < 0.01 * np.abs(expected).max()


def test_the_convolution_of_an_image_is_stored_in_half_precision(passed):
    node = helper.make_node("Conv", ["x", "patch"], ["y"], name="one", strides=[8, 8])
    model = graph_of([node], {"x": (TensorProto.FLOAT, [1, 3, 16, 16])}, [1, 64, 2, 2], patch=normal(64, 3, 8, 8))
    x = normal(1, 3, 16, 16)
    expected = run(model, x=x)
    draft = passed(model, STORE_CONVOLUTIONS)
    assert draft.counts == {"int8_stored_convolutions": 1}
    model = draft.graph.model()
    onnx.checker.check_model(model, full_check=True)
    assert [tensor.data_type for tensor in model.graph.initializer] == [TensorProto.FLOAT16]
    assert np.abs(run(model, x=x) - expected).max() < 0.001 * np.abs(expected).max()


def test_what_nothing_can_be_gained_from_stays(passed):
    node = helper.make_node("Gemm", ["x", "w"], ["y"], name="n", alpha=2.0)
    model = graph_of([node], {"x": (TensorProto.FLOAT, ["n", 64])}, ["n", 96], w=normal(64, 96))
    draft = passed(prepare_products(graph_parts(model)).model(), QUANTIZE_PRODUCTS)
    assert draft.counts == {"int8_products": 0}
    assert draft.graph.nodes[0].op_type == "Gemm"
