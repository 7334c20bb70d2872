"""What is not standard ONNX is found wherever it hides."""

import pytest
from onnx import ModelProto, TensorProto, helper, parser

from xattn_export.graph.conformance import drop_unused_imports, examine, require_standard
from xattn_runtime.errors import XattnError

PLAIN = '<ir_version: 10, opset_import: ["" : 18]> g (float[n] x) => (float[n] y) { y = Relu(x) }'


def planted(where: str) -> ModelProto:
    """A graph with a `com.microsoft` node: at the top, two subgraphs deep, or in a function."""
    foreign = helper.make_node("Gelu", ["x"], ["y"], domain="com.microsoft")
    output = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n"])
    nodes, functions = [foreign], []
    if where == "subgraph":
        for depth in range(2):
            inner = helper.make_graph(nodes, f"inner{depth}", [], [output])
            other = helper.make_graph([helper.make_node("Relu", ["x"], ["y"])], f"other{depth}", [], [output])
            nodes = [helper.make_node("If", ["c"], ["y"], then_branch=inner, else_branch=other)]
    elif where == "function":
        opsets = [helper.make_opsetid("", 18), helper.make_opsetid("com.microsoft", 1)]
        functions = [helper.make_function("", "Tidy", ["x"], ["y"], nodes, opsets)]
        nodes = [helper.make_node("Tidy", ["x"], ["y"])]
    inputs = [
        helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n"]),
        helper.make_tensor_value_info("c", TensorProto.BOOL, []),
    ]
    graph = helper.make_graph(nodes, "g", inputs, [output])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], functions=functions)


def test_a_standard_graph():
    facts = require_standard(parser.parse_model(PLAIN), "decoder")
    assert (facts.opset, facts.domains, facts.operators, facts.standard) == (18, ("ai.onnx",), {"Relu": 1}, True)


@pytest.mark.parametrize("where", ["graph", "subgraph", "function"])
def test_a_foreign_node_is_found(where):
    model = planted(where)
    facts = examine(model)
    assert not facts.standard
    assert "com.microsoft::Gelu" in facts.operators
    assert "com.microsoft" in facts.domains
    with pytest.raises(XattnError, match=r"decoder: .*com\.microsoft"):
        require_standard(model, "decoder")


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (PLAIN.replace("Relu", "Attention"), "which opset 18 does not have"),
        (PLAIN.replace("Relu", "NoSuchThing"), "which opset 18 does not have"),
        (PLAIN.replace("y = Relu(x)", "y = Upsample(x, x)"), "which opset 18 deprecates"),
        (PLAIN.replace('["" : 18]', '["" : 18, "ai.onnx.ml" : 3]'), "imports the domain ai.onnx.ml"),
        (PLAIN.replace('["" : 18]', '["other" : 1]'), "does not import ai.onnx"),
    ],
)
def test_reasons(text, reason):
    facts = examine(parser.parse_model(text))
    assert any(reason in offence for offence in facts.offences)


def test_unused_imports_are_dropped_and_used_ones_kept():
    model = parser.parse_model(PLAIN.replace('["" : 18]', '["" : 18, "com.microsoft" : 1]'))
    drop_unused_imports(model)
    assert examine(model).standard
    model = planted("graph")
    model.opset_import.append(helper.make_opsetid("com.microsoft", 1))
    drop_unused_imports(model)
    assert len(model.opset_import) == 2


@pytest.mark.parametrize(
    ("kind", "precision"),
    [(TensorProto.FLOAT, "fp32"), (TensorProto.FLOAT16, "fp16"), (TensorProto.INT8, "int8")],
)
def test_precision(kind, precision):
    model = parser.parse_model(PLAIN)
    model.graph.initializer.append(helper.make_tensor("w", kind, [2, 2], [1, 2, 3, 4]))
    assert examine(model).precision == precision
