"""The layer before a head that nothing goes around stays in float32, unless it is asked for otherwise."""

import numpy as np
import pytest
from onnx import numpy_helper, parser

from xattn_export.quantize import plans
from xattn_export.quantize.base.layers import QuantizableLayer
from xattn_export.quantize.base.prepared import prepare_bundle
from xattn_export.quantize.passes.pre_head import find_pre_head_layers
from xattn_runtime.bundle.folder import open_bundle

WIDTH, WORDS = 64, 7000


def decoder(before_head, words=WORDS):
    """A block, what `before_head` makes of it as `h`, and a head. Nodes are named for what they give."""
    model = parser.parse_model(f"""
        <ir_version: 10, opset_import: ["" : 23]>
        decoder (float[n, {WIDTH}] x) => (float[n, {words}] logits, int64[n] best) {{
            inner = MatMul(x, w_inner)
            block = Add(inner, x)
            {before_head}
            scores = MatMul(h, w_head)
            logits = Add(scores, b_head)
            best = ArgMax <axis = -1, keepdims = 0> (logits)
        }}""")
    for node in model.graph.node:
        node.name = node.output[0]
    shapes = {
        "w_inner": (WIDTH, WIDTH),
        "w": (WIDTH, WIDTH),
        "b": (WIDTH,),
        "w_head": (WIDTH, words),
        "b_head": (words,),
    }
    weights = [numpy_helper.from_array(np.ones(shape, np.float32), name) for name, shape in shapes.items()]
    model.graph.initializer.extend(weights)
    return model


TRANSFORM = "t = MatMul(block, w)\n u = Add(t, b)\n v = Gelu(u)\n h = LayerNormalization(v, b, b)"


@pytest.mark.parametrize(
    ("before_head", "words", "found"),
    [
        (TRANSFORM, WORDS, ["t"]),
        (TRANSFORM, 90, []),
        ("t = MatMul(block, w)\n h = Add(t, block)", WORDS, []),
        ("h = LayerNormalization(block, b, b)", WORDS, []),
        ("t = MatMul(block, w)\n h = Softmax(t)", WORDS, []),
    ],
    ids=["transform", "not few", "way around", "no product", "another function"],
)
def test_what_has_no_way_around_it(prepared, before_head, words, found):
    graph = prepared(decoder(before_head, words))
    assert [layer.name for layer in find_pre_head_layers(graph.products, graph.layers)] == found


@pytest.mark.parametrize(
    ("mode", "kept"), [("int8", True), ("int8-weight", True), ("int4", True), ("int8-static", False)]
)
def test_it_stays_in_float32_unless_asked_for(exported, monkeypatch, mode, kept):
    source = prepare_bundle(open_bundle(exported["caption"]))
    decoder = source.graphs["decoder"]
    layer = decoder.layers[-1]
    monkeypatch.setattr(
        plans, "find_pre_head_layers", lambda graph, layers: [layer] if graph is decoder.products else []
    )
    made = plans.make_plans(source, mode, {})["decoder"]
    assert made.mode_of(layer.name) == ("fp32" if kept else mode)
    assert made.mode_of("another") == mode
    asked = plans.make_plans(source, mode, {f"decoder/{layer.name}": "int4"})["decoder"]
    assert isinstance(layer, QuantizableLayer) and asked.mode_of(layer.name) == "int4"
