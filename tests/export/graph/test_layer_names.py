from __future__ import annotations

import onnx
import pytest

from xattn_export.graph.layer_names import name_by_layer


def test_nodes_and_tensors_are_called_after_their_modules() -> None:
    model = onnx.parser.parse_model(
        """<ir_version: 9, opset_import: ["": 20]>
        g (float[2, 2] x) => (float[2, 2] y) { a = MatMul(x, x) b = Add(a, x) c = Add(b, x) y = Relu(c) }"""
    )
    scopes = (
        ["", "layers.0", "layers.0.query", "linear"],
        ["", "layers.0", "add"],
        ["", "layers.0", "add_1"],
        ["", "relu"],
    )
    for node, found in zip(model.graph.node, scopes, strict=True):
        node.metadata_props.add(key="pkg.torch.onnx.name_scopes", value=repr(found))
    name_by_layer(model)
    assert [node.name for node in model.graph.node] == [
        "layers.0.query/MatMul",
        "layers.0/Add",
        "layers.0/Add.2",
        "Relu",
    ]
    assert list(model.graph.node[2].input) == ["layers.0/Add:0", "x"]
    assert list(model.graph.node[3].output) == ["y"]
    onnx.checker.check_model(model)


@pytest.mark.parametrize("kind", ["caption", "lstm"])
def test_exported_graphs(exported: dict[str, object], kind: str) -> None:
    graph = onnx.load(f"{exported[kind]}/graphs/image_encoder.onnx", load_external_data=False).graph
    names = [node.name for node in graph.node]
    assert len(set(names)) == len(names)
    assert sum("." in name.partition("/")[0] for name in names) > len(names) / 2
