"""Large weights lie beside the graphs, each of them once, where every engine finds them."""

import shutil
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch
from onnx import TensorProto
from onnx.reference import ReferenceEvaluator
from torch import nn

from xattn_export import export_checkpoint, inspect_path
from xattn_export.graph.external_weights import WeightStore, has_weights_outside
from xattn_export.graph.reading import read_graph
from xattn_export.quantize import quantize_bundle
from xattn_runtime.bundle.folder import open_bundle
from xattn_runtime.loader import load
from xattn_runtime.verify.golden import verify_bundle

LARGE = 80 * 128


def model(**weights: np.ndarray) -> ir.Model:
    """`y = x + w` for each of the weights, as torch's exporter hands it over."""
    values = {name: ir.Value(name=name, const_value=ir.tensor(value, name=name)) for name, value in weights.items()}
    nodes = [ir.node("Identity", [value]) for value in values.values()]
    graph = ir.Graph(
        [],
        [node.outputs[0] for node in nodes],
        nodes=nodes,
        initializers=list(values.values()),
        opset_imports={"": 18},
        name="graph",
    )
    for node, value in zip(nodes, weights.values(), strict=True):
        (factor, *_), (output, *_) = node.inputs, node.outputs
        assert factor is not None
        output.name = f"{factor.name}_out"
        node.outputs[0].type = ir.TensorType(ir.DataType.FLOAT)
        node.outputs[0].shape = ir.Shape(value.shape)
    return ir.Model(graph, ir_version=10)


def write(folder: Path, name: str, taken: ir.Model) -> Path:
    path = folder / f"{name}.onnx"
    onnx.save(ir.to_proto(taken), path)
    return path


def test_a_tensor_of_two_graphs_is_stored_once(tmp_path):
    rng = np.random.default_rng(1)
    shared, own, small = (rng.normal(size=size).astype(np.float32) for size in (LARGE, LARGE, 4))
    store = WeightStore(tmp_path, inside_bytes=0)
    expected = {}
    for name, weights in (("one", {"a": shared, "b": shared, "c": small}), ("two", {"d": own, "e": shared})):
        taken = model(**weights)
        store.externalize(taken, f"{name}.onnx.data")
        expected[write(tmp_path, name, taken)] = list(weights.values())
    assert (tmp_path / "one.onnx.data").stat().st_size == shared.nbytes
    assert (tmp_path / "two.onnx.data").stat().st_size == own.nbytes
    for path, weights in expected.items():
        onnx.checker.check_model(str(path), full_check=True)
        for found, wanted in zip(ReferenceEvaluator(str(path)).run(None, {}), weights, strict=True):
            np.testing.assert_array_equal(found, wanted)
    inside = {tensor.name: tensor.data_location for tensor in read_graph(tmp_path / "one.onnx").graph.initializer}
    assert inside == {"a": TensorProto.EXTERNAL, "b": TensorProto.EXTERNAL, "c": TensorProto.DEFAULT}


def test_weights_taken_out_apart_are_joined_with_each_of_them_once(tmp_path):
    rng = np.random.default_rng(2)
    shared, own, other = (rng.normal(size=LARGE).astype(np.float32) for _ in range(3))
    joined = WeightStore(tmp_path, inside_bytes=0)
    expected = {}
    for name, weights in (("one", {"a": shared}), ("two", {"b": own, "c": shared}), ("three", {"d": other})):
        apart = WeightStore(tmp_path / f"of-{name}", inside_bytes=0)
        taken = model(**weights)
        apart.externalize(taken, f"{name}.onnx.data")
        found = joined.merge(ir.to_proto(taken), apart, f"{name}.onnx.data")
        shutil.rmtree(apart.folder)
        path = tmp_path / f"{name}.onnx"
        onnx.save(found, path)
        expected[path] = list(weights.values())
    assert {path.name: path.stat().st_size for path in tmp_path.glob("*.data")} == {
        f"{name}.onnx.data": shared.nbytes for name in ("one", "two", "three")
    }
    for path, weights in expected.items():
        onnx.checker.check_model(str(path), full_check=True)
        for found, wanted in zip(ReferenceEvaluator(str(path)).run(None, {}), weights, strict=True):
            np.testing.assert_array_equal(found, wanted)


@pytest.mark.parametrize(("count", "alignment"), [(2 * LARGE, 4096), (LARGE, 64)])
def test_tensors_begin_where_they_can_be_mapped_or_read(tmp_path, count, alignment):
    rng = np.random.default_rng(2)
    taken = model(a=rng.normal(size=LARGE + 3).astype(np.float32), b=rng.normal(size=count).astype(np.float32))
    WeightStore(tmp_path, inside_bytes=0).externalize(taken, "graph.onnx.data")
    offsets = [value.const_value.offset for value in taken.graph.initializers.values()]
    assert offsets[0] == 0
    assert 4 * (LARGE + 3) < offsets[1] <= 4 * (LARGE + 3) + alignment
    assert offsets[1] % alignment == 0


@pytest.mark.parametrize(("count", "inside_bytes"), [(LARGE, 4 * LARGE), (10, 0)])
def test_a_graph_that_is_small_enough_stays_whole(tmp_path, count, inside_bytes):
    """In all, or in each of its tensors."""
    taken = model(a=np.ones(count, np.float32))
    WeightStore(tmp_path, inside_bytes).externalize(taken, "graph.onnx.data")
    assert not has_weights_outside(ir.to_proto(taken))
    assert list(tmp_path.iterdir()) == []


def test_a_parameter_that_is_a_view_is_written_as_it_is_seen(tmp_path):
    """torch hands over transposed and mapped tensors without copying them."""
    weight = nn.Parameter(torch.arange(2.0 * LARGE).reshape(2, LARGE).t()[1:])
    taken = model(a=np.ones((1,), np.float32))
    value = next(iter(taken.graph.initializers.values()))
    value.const_value = ir.tensor_adapters.TorchTensor(weight, name="a")
    WeightStore(tmp_path, inside_bytes=0).externalize(taken, "graph.onnx.data")
    found = np.fromfile(tmp_path / "graph.onnx.data", np.float32).reshape(weight.shape)
    np.testing.assert_array_equal(found, weight.detach().numpy())


@pytest.fixture(scope="module")
def outside(checkpoints, tmp_path_factory) -> Path:
    """A bundle of ours with its weights beside the graphs."""
    bundle = tmp_path_factory.mktemp("outside") / "caption.xattn"
    export_checkpoint(checkpoints["caption"], bundle, attention="decomposed", inside_bytes=0)
    return bundle


def test_a_bundle_with_weights_outside(outside, exported):
    files = open_bundle(outside).manifest.files
    assert {"graphs/decoder.onnx.data", "graphs/image_encoder.onnx.data"} < set(files)
    for role in ("decoder", "image_encoder"):
        assert has_weights_outside(read_graph(outside / f"graphs/{role}.onnx"))
        assert not has_weights_outside(onnx.load(outside / f"graphs/{role}.onnx"))
    report = verify_bundle(outside)
    assert report.passed
    picture = outside / "golden" / "0.png"
    assert load(outside).caption(picture).token_ids == load(exported["caption"]).caption(picture).token_ids


def test_it_is_inspected_with_its_weights(outside):
    report = inspect_path(outside)
    files = open_bundle(outside).manifest.files
    for role, beside in (("image_encoder", "image_encoder"), ("decoder", "decoder"), ("generator", "decoder")):
        expected = files[f"graphs/{role}.onnx"].bytes + files[f"graphs/{beside}.onnx.data"].bytes
        assert report.bytes[role] == expected


def test_it_can_be_quantized(outside, tmp_path):
    report = quantize_bundle(outside, tmp_path / "small.xattn")
    assert report.bytes_after < report.bytes_before
    assert verify_bundle(tmp_path / "small.xattn").passed
