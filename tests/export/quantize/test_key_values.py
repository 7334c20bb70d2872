"""Keys and values in fewer bits: what graphs hand on, what they compute with it, and that they agree about it."""

import json
import shutil

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper
from onnx.reference import ReferenceEvaluator

from xattn_export import QuantizeOptions, inspect_path, quantize_bundle
from xattn_export.graph.editing import graph_parts
from xattn_export.quantize.calibration.examples import golden_examples
from xattn_export.quantize.passes.key_values import StoredSeries, is_transposed, largest_stored, store_key_values
from xattn_runtime.bundle.folder import open_bundle
from xattn_runtime.errors import BundleError, UserError
from xattn_runtime.loader import load
from xattn_runtime.verify.golden import measure, verify_bundle

CASES = {"cross-fp16": ("fp16", "fp32"), "cross-int8": ("int8", "fp32"), "both-int8": ("int8", "int8")}
LARGEST_LOSS = {"cross-fp16": 1e-3, "cross-int8": 0.03, "both-int8": 0.03}


@pytest.fixture(scope="module")
def made(exported, reads, once, tmp_path_factory):
    """case → bundle; weights stay fp32. Each graph is read once."""
    folder = tmp_path_factory.mktemp("key_values")
    examples = golden_examples(open_bundle(exported["caption"]))
    for case, (cross, cache) in CASES.items():
        options = QuantizeOptions(cross=cross, cache=cache)
        with reads(exported["caption"]) as counts:
            quantize_bundle(exported["caption"], folder / case, mode="fp32", options=options, examples=examples)
        assert counts == once(exported["caption"])
    return {case: folder / case for case in CASES}


@pytest.mark.parametrize("case", CASES)
def test_graphs_agree_and_little_is_lost(made, exported, case):
    path = made[case]
    assert verify_bundle(path).passed
    assert inspect_path(path).to_dict()["standard"] is True
    task = load(path)
    losses = [one.relative_rms for one in measure(task)]
    assert 0 < max(losses) < LARGEST_LOSS[case]
    image = exported["caption"] / "golden" / "0.png"
    assert task.caption(image).text == load(exported["caption"]).caption(image).text
    assert task.caption(image, beams=3).text == load(exported["caption"]).caption(image, beams=3).text


def test_graphs_of_two_bundles_do_not_go_together(made, exported, tmp_path):
    shutil.copytree(made["cross-fp16"], tmp_path / "mixed.xattn")
    manifest = json.loads((tmp_path / "mixed.xattn" / "manifest.json").read_text())
    other = json.loads((exported["caption"] / "manifest.json").read_text())
    file = manifest["graphs"]["image_encoder"]["file"]
    shutil.copy(exported["caption"] / file, tmp_path / "mixed.xattn" / file)
    manifest["files"][file] = other["files"][file]
    (tmp_path / "mixed.xattn" / "manifest.json").write_text(json.dumps(manifest))
    message = r"input cross_key_0: expected tensor\(float\), as .* gives, found tensor\(float16\); export again"
    with pytest.raises(BundleError, match=message):
        load(tmp_path / "mixed.xattn")


def test_types_of_what_is_handed_on(made):
    types = {TensorProto.FLOAT: "fp32", TensorProto.FLOAT16: "fp16", TensorProto.INT8: "int8"}
    for case, (cross, cache) in CASES.items():
        graph = onnx.load(made[case] / "graphs" / "decoder.onnx").graph
        found = {value.name: types.get(value.type.tensor_type.elem_type) for value in (*graph.input, *graph.output)}
        for series, precision in (("cross", cross), ("past", cache), ("present", cache)):
            assert {found[f"{series}_key_0"], found[f"{series}_value_1"]} == {precision}


def attention(**options):
    nodes = [helper.make_node("Attention", ["query", "cross_key_0", "cross_value_0"], ["y"], name="a", **options)]
    axes = {"query": [1, 4, 3, 8], "cross_key_0": [1, 4, 20, 8], "cross_value_0": [1, 4, 20, 8]}
    inputs = [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in axes.items()]
    graph = helper.make_graph(
        nodes, "g", inputs, [helper.make_tensor_value_info("y", TensorProto.FLOAT, axes["query"])]
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 23)], ir_version=10)


@pytest.mark.parametrize("options", [{}, {"scale": 0.3}])
def test_attention_over_bytes(options):
    """Heads of very different spread, one of which attends to one token alone."""
    rng = np.random.default_rng(3)
    spread = np.array([0.01, 1, 2, 8], np.float32)
    query = rng.normal(size=(1, 4, 3, 8)).astype(np.float32) * spread[:, None, None]
    key, value = rng.normal(size=(2, 1, 4, 20, 8)).astype(np.float32)
    model = attention(**options)
    expected = ReferenceEvaluator(model).run(None, {"query": query, "cross_key_0": key, "cross_value_0": value})[0]
    scales = {
        name: np.abs(one).max(axis=(0, 2)) / largest_stored("cross_key_0")
        for name, one in (("key", key), ("value", value))
    }
    assert is_transposed(graph_parts(model), "cross_key_0")
    stored_graph, added = store_key_values(
        graph_parts(model),
        {
            "cross_key_0": StoredSeries("int8", scales["key"], transposed=True),
            "cross_value_0": StoredSeries("int8", scales["value"]),
        },
    )
    assert added
    model = stored_graph.model()
    onnx.checker.check_model(model, full_check=True)
    assert not any(node.op_type == "Attention" for node in model.graph.node)
    stored = {
        "cross_key_0": np.rint(key / scales["key"][:, None]).astype(np.int8).swapaxes(2, 3).copy(),
        "cross_value_0": np.rint(value / scales["value"][:, None]).astype(np.int8),
    }
    found = ReferenceEvaluator(model).run(None, {"query": query, **stored})[0]
    for head in range(4):
        error = np.sqrt(np.mean((found[0, head] - expected[0, head]) ** 2) / np.mean(expected[0, head] ** 2))
        assert error < 0.07, head


def test_attention_over_the_largest_bytes_is_exact_on_every_processor():
    """Where sums of two products are in 16 bits, 127 would be too large."""
    model, largest = attention(), largest_stored("cross_key_0")
    stored_graph, _ = store_key_values(
        graph_parts(model),
        {
            "cross_key_0": StoredSeries("int8", np.full((4, 8), 1 / largest, np.float32), transposed=True),
            "cross_value_0": StoredSeries("int8", np.full((4, 8), 1 / largest, np.float32)),
        },
    )
    model = stored_graph.model()
    inputs = {
        "query": np.linspace(0.1, 1, 96, dtype=np.float32).reshape(1, 4, 3, 8),
        "cross_key_0": np.full((1, 4, 8, 20), largest, np.int8),
        "cross_value_0": np.full((1, 4, 20, 8), largest, np.int8),
    }
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    np.testing.assert_allclose(session.run(None, inputs)[0], 1, rtol=1e-6)
    np.testing.assert_array_equal(session.run(None, inputs)[0], ReferenceEvaluator(model).run(None, inputs)[0])


def test_masked_attention_restores_what_it_takes():
    model = attention(softcap=5.0)
    assert not is_transposed(graph_parts(model), "cross_key_0")
    series = {"cross_key_0": StoredSeries("fp16"), "cross_value_0": StoredSeries("fp16")}
    model = store_key_values(graph_parts(model), series)[0].model()
    onnx.checker.check_model(model, full_check=True)
    assert [node.op_type for node in model.graph.node] == ["Cast", "Cast", "Attention"]


def test_what_a_bundle_does_not_have(exported, tmp_path):
    examples = golden_examples(open_bundle(exported["lstm"]))
    for options, message in (
        (QuantizeOptions(cache="fp16"), "cache: expected a bundle whose graphs hand on keys and values"),
        (QuantizeOptions(cross="int4"), "cross: expected one of fp32, fp16, int8, found 'int4'"),
    ):
        with pytest.raises(UserError, match=message):
            quantize_bundle(exported["lstm"], tmp_path / "out.xattn", options=options, examples=examples)
    with pytest.raises(UserError, match="cross int8: expected data to calibrate on, found none"):
        quantize_bundle(exported["lstm"], tmp_path / "out.xattn", options=QuantizeOptions(cross="int8"))
    assert list(tmp_path.iterdir()) == []
