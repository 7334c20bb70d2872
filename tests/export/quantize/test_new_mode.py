"""A new mode is a file and a row: this file is one, and `with_row` adds the row."""

import numpy as np
import onnx
import pytest
from onnx import TensorProto

from xattn_export import quantize_bundle
from xattn_export.graph.editing import GraphWriter, with_inputs
from xattn_export.quantize.base.layers import layer_name
from xattn_export.quantize.base.mode_spec import ModeSpec
from xattn_export.quantize.base.passing import Pass
from xattn_export.quantize.modes import table
from xattn_export.quantize.passes.biases import CORRECT_BIASES
from xattn_runtime.bundle.folder import open_bundle
from xattn_runtime.errors import UserError
from xattn_runtime.verify.golden import verify_bundle


def store_halves(draft, assignment):
    """Store the weights of products in half precision."""
    names, writer = assignment.names("product"), GraphWriter(draft.graph.constants())
    for node in draft.graph.nodes:
        if layer_name(node) not in names:
            writer.keep(node)
            continue
        source, name = node.input
        stored = writer.constants.add(f"{name}_half", writer.constants.values(name).astype(np.float16))
        restored = writer.node("Cast", [stored], f"{name}_restored", to=TensorProto.FLOAT)
        writer.keep(with_inputs(node, [source, restored]))
    return draft.after(draft.graph.rewritten(writer), halved_products=len(names))


HALF_WEIGHT = ModeSpec(
    "half-weight",
    "fp16",
    (Pass("store_halves", store_halves), CORRECT_BIASES),
    session_options=lambda options: {"session.qdq_matmulnbits_accuracy_level": "1"},
)


@pytest.fixture
def with_row(monkeypatch):
    monkeypatch.setattr(table, "MODES", (*table.MODES, HALF_WEIGHT))


def weights_of(bundle, role):
    graph = onnx.load(bundle / "graphs" / f"{role}.onnx").graph
    return {tensor.name: tensor.data_type for tensor in graph.initializer}


def test_a_bundle_in_the_new_mode(with_row, exported, tmp_path):
    path = tmp_path / "half.xattn"
    report = quantize_bundle(exported["lstm"], path, mode="half-weight")
    manifest = open_bundle(path).manifest
    assert verify_bundle(path).passed and 0 < report.largest_relative_rms < 0.01
    assert set(manifest.quantization["components"].values()) == {"half-weight"}
    assert {graph.precision for graph in manifest.graphs.values()} == {"fp16"}
    assert manifest.session_options["session.qdq_matmulnbits_accuracy_level"] == "1"
    for role, graph in report.graphs.items():
        halves = [name for name, kind in weights_of(path, role).items() if kind == TensorProto.FLOAT16]
        assert len(halves) == graph.layers["halved_products"] > 0
        assert graph.to_dict()["halved_products"] == len(halves)


def test_beside_another_mode(with_row, exported, tmp_path):
    """In graphs of their own, and in layers of one graph."""
    path = tmp_path / "mixed.xattn"
    source = exported["lstm"]
    whole = quantize_bundle(source, tmp_path / "whole.xattn", mode="int8")
    layer = next(
        node.name.removesuffix("_sum")
        for node in onnx.load(tmp_path / "whole.xattn" / "graphs" / "classifier.onnx").graph.node
        if node.op_type == "MatMulInteger"
    )
    components = {"image_encoder": "half-weight", f"classifier/{layer}": "half-weight"}
    mixed = quantize_bundle(source, path, mode="int8", components=components)
    assert mixed.graphs["image_encoder"].layers["int8_products"] == 0
    assert mixed.graphs["classifier"].layers["halved_products"] == 1
    all_products = whole.graphs["classifier"].layers["int8_products"]
    assert mixed.graphs["classifier"].layers["int8_products"] == all_products - 1 > 0


def test_without_the_row(exported, tmp_path):
    with pytest.raises(UserError, match=r"mode: expected one of fp32, fp16, .* found 'half-weight'"):
        quantize_bundle(exported["lstm"], tmp_path / "out.xattn", mode="half-weight")
