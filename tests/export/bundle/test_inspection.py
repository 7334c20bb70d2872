"""Inspecting bundles, graphs, and files that are neither."""

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper, parser

from xattn_export import inspect_path
from xattn_runtime.errors import BundleError

GRAPH = '<ir_version: 10, opset_import: ["" : 18]> g (float[n] x) => (float[n] y) { y = Relu(x) }'


def test_a_bundle(exported):
    report = inspect_path(exported["caption"]).to_dict()
    assert report["standard"] is True
    assert list(report["graphs"]) == ["image_encoder", "decoder", "generator", "whole", "whole_text"]
    assert report["absent"] == {}
    decoder = report["graphs"]["decoder"]
    assert decoder["opset"] == 23
    assert decoder["domains"] == ["ai.onnx"]
    assert decoder["operators"]["Attention"] == 4
    assert decoder["precision"] == "fp32"
    files = [exported["caption"] / "graphs" / name for name in ("decoder.onnx", "decoder.onnx.data")]
    assert decoder["bytes"] == sum(file.stat().st_size for file in files)


def test_a_single_graph(exported):
    report = inspect_path(exported["lstm"] / "graphs" / "classifier.onnx").to_dict()
    assert list(report["graphs"]) == ["classifier"]
    assert report["graphs"]["classifier"]["operators"]["LSTM"] == 1


def test_a_graph_of_another_domain(tmp_path):
    text = GRAPH.replace("Relu", "com.microsoft.Gelu").replace('"" : 18', '"" : 18, "com.microsoft" : 1')
    onnx.save(parser.parse_model(text), tmp_path / "contrib.onnx")
    report = inspect_path(tmp_path / "contrib.onnx").to_dict()
    assert report["standard"] is False
    assert report["graphs"]["contrib"]["operators"] == {"com.microsoft::Gelu": 1}


def test_external_weights_count_and_others_do_not(tmp_path):
    model = parser.parse_model(GRAPH)
    model.graph.initializer.append(numpy_helper.from_array(np.zeros(5000, np.float32), "w"))
    onnx.save(model, tmp_path / "m.onnx", save_as_external_data=True, location="m.data", size_threshold=0)
    alone = (tmp_path / "m.onnx").stat().st_size
    assert inspect_path(tmp_path / "m.onnx").bytes["m"] == alone + 20000
    (tmp_path / "secret").write_bytes(bytes(99))
    (tmp_path / "in").mkdir()
    model = onnx.load(tmp_path / "m.onnx", load_external_data=False)
    next(entry for entry in model.graph.initializer[0].external_data if entry.key == "location").value = "../secret"
    (tmp_path / "in" / "m.onnx").write_bytes(model.SerializeToString())
    assert inspect_path(tmp_path / "in" / "m.onnx").bytes["m"] < 500


def _truncated(path: Path, good: bytes) -> None:
    path.write_bytes(good[: len(good) // 2])


def _text(path: Path, good: bytes) -> None:
    path.write_text("not a model\n" * 50)


def _empty(path: Path, good: bytes) -> None:
    path.write_bytes(b"")


def _zeros(path: Path, good: bytes) -> None:
    path.write_bytes(bytes(1000))


@pytest.mark.parametrize("damage", [_truncated, _text, _empty, _zeros])
def test_a_broken_file(tmp_path, exported, damage):
    path = tmp_path / "graph.onnx"
    damage(path, (exported["lstm"] / "graphs" / "classifier.onnx").read_bytes())
    with pytest.raises(BundleError, match=r"graph\.onnx: expected an ONNX model, found") as caught:
        inspect_path(path)
    assert "\n" not in str(caught.value)


def test_nothing_there(tmp_path):
    with pytest.raises(BundleError, match="found nothing"):
        inspect_path(tmp_path / "none.xattn")
    with pytest.raises(BundleError, match=r"no manifest\.json"):
        inspect_path(tmp_path)


def test_an_altered_bundle(vqa_copy):
    path = vqa_copy / "graphs" / "classifier.onnx"
    path.write_bytes(path.read_bytes() + b"1")
    with pytest.raises(BundleError, match=r"classifier\.onnx"):
        inspect_path(vqa_copy)
