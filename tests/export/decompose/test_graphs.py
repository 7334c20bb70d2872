"""Whole models with `Attention`: their subgraphs, functions, names and weights, and the opset that they import."""

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import ModelProto, parser

from xattn_export.decompose import decompose_attention
from xattn_export.graph.conformance import examine
from xattn_export.parity import check_parity
from xattn_runtime.errors import XattnError


def run(model: ModelProto, feeds: dict[str, np.ndarray]) -> list[np.ndarray]:
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(None, feeds)


def parse(graph: str, opset: int = 23, functions: str = "", domains: str = "") -> ModelProto:
    model = parser.parse_model(f'<ir_version: 10, opset_import: ["" : {opset}{domains}]> g {graph}{functions}')
    onnx.checker.check_model(model)
    return model


def random_feeds(model: ModelProto, **sizes: int) -> dict[str, np.ndarray]:
    """A float32 array for every input, `sizes` for its symbols."""
    rng = np.random.default_rng(5)
    return {
        tensor.name: rng.normal(
            size=[sizes.get(axis.dim_param, axis.dim_value) for axis in tensor.type.tensor_type.shape.dim]
        ).astype(np.float32)
        for tensor in model.graph.input
    }


def assert_same(model: ModelProto, feeds: dict[str, np.ndarray], opset: int = 18) -> ModelProto:
    """The rewritten model, which has computed what `model` computes by ONNX Runtime's own Attention."""
    rewritten = decompose_attention(model, opset=opset)
    onnx.checker.check_model(rewritten, full_check=True)
    facts = examine(rewritten)
    assert (facts.opset, facts.standard, "Attention" in facts.operators) == (opset, True, False)
    for found, expected in zip(run(rewritten, feeds), run(model, feeds), strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)
    return rewritten


def test_what_is_known_needs_no_more_than_the_arithmetic():
    graph = "(float[b,4,n,8] q, float[b,4,m,8] k, float[b,4,m,8] v) => (float[b,4,n,8] y) { y = Attention(q, k, v) }"
    model = parse(graph)
    rewritten = assert_same(model, random_feeds(model, b=2, n=3, m=5))
    assert [node.op_type for node in rewritten.graph.node] == ["Mul", "Transpose", "Mul", "MatMul", "Softmax", "MatMul"]
    assert rewritten.graph.node[-1].output == ["y"]


def test_a_step_that_decodes_one_token_has_no_causal_mask():
    model = parse(
        """(float[b,4,1,8] q, float[b,4,1,8] k, float[b,4,1,8] v, float[b,4,p,8] pk, float[b,4,p,8] pv)
        => (float[b,4,1,8] y, float[b,4,t,8] nk, float[b,4,t,8] nv)
        { y, nk, nv = Attention<is_causal = 1>(q, k, v, , pk, pv) }"""
    )
    rewritten = assert_same(model, random_feeds(model, b=2, p=3))
    assert "Where" not in examine(rewritten).operators


def test_layers_share_one_bias():
    layers = "\n".join(f"x{i + 1} = Attention<is_causal=1>(x{i}, x{i}, x{i}, mask)" for i in range(5))
    model = parse(f"(float[b,2,n,8] x0, float[b,1,n,n] mask) => (float[b,2,n,8] x5) {{ {layers} }}")
    rewritten = assert_same(model, random_feeds(model, b=2, n=4))
    operators = examine(rewritten).operators
    assert (operators["LessOrEqual"], operators["ReduceMax"]) == (2, 1)  # places of keys, and rows without one
    assert operators["Softmax"] == 5


def test_two_calls_that_are_the_same_are_computed_once():
    model = parse(
        "(float[2,2,3,8] x) => (float[2,2,3,8] y, float[2,2,3,8] z) { y = Attention(x,x,x) z = Attention(x,x,x) }"
    )
    operators = examine(assert_same(model, random_feeds(model))).operators
    assert (operators["Softmax"], operators["Identity"]) == (1, 1)


def test_names_that_are_taken():
    model = parse(
        """(float[2,2,3,8] x) => (float[2,2,3,8] y)
        { "y/Mul" = Neg(x) "attention/constant" = Neg("y/Mul") y = Attention("y/Mul", "attention/constant", x) }"""
    )
    assert_same(model, random_feeds(model))


def test_subgraphs():
    model = parse(
        """(float[b,n,8] x, bool[1] flag, int64 steps) => (float[b,n,8] y, float[b,n,8] z) {
        scalar = Squeeze(flag)
        y = If(scalar) <
            then_branch = a () => (float[b,n,8] t) { t = Attention<q_num_heads=2,kv_num_heads=2>(x, x, x) },
            else_branch = b () => (float[b,n,8] e) { r = Neg(x) e = Attention<q_num_heads=1,kv_num_heads=1>(r, x, r) }
        >
        z = Loop(steps, , y) <body = c (int64 i, bool go, float[b,n,8] s) => (bool on, float[b,n,8] u) {
            on = Identity(go) u = Attention<q_num_heads=4,kv_num_heads=4,is_causal=1>(s, x, y)
        }>
        }"""
    )
    for flag in (True, False):
        x = np.random.default_rng(1).normal(size=(2, 3, 8)).astype(np.float32)
        assert_same(model, {"x": x, "flag": np.array([flag]), "steps": np.array(3)})


def test_functions():
    """With attributes left to their defaults, called by another function, and with one that is never called."""
    model = parse(
        "(float[b,n,8] x) => (float[b,n,8] y) { z = my.block(x) y = my.halve(z) }",
        functions="""
        <domain: "my", opset_import: ["" : 23, "my" : 1]> block (x) => (y) { n = Neg(x) y = my.attend(x, n) }
        <domain: "my", opset_import: ["" : 23]> attend <heads: int = 2> (q, k) => (y)
        { y = Attention <q_num_heads: int = @heads, kv_num_heads: int = @heads> (q, k, q) }
        <domain: "my", opset_import: ["" : 23]> halve (x) => (y)
        { h = Constant<value = float {0.5}>() y = Mul(x, h) }
        <domain: "my", opset_import: ["" : 23]> idle (x) => (y) { y = Attention(x, x, x) }""",
        domains=', "my" : 1',
    )
    rewritten = decompose_attention(model, opset=18)
    assert [function.name for function in rewritten.functions] == ["halve"]
    assert "Attention" not in examine(rewritten).operators
    feeds = random_feeds(model, b=2, n=3)
    heads = feeds["x"].reshape(2, 3, 2, 4).transpose(0, 2, 1, 3).astype(np.float64)
    weights = np.exp(heads @ -heads.swapaxes(-1, -2) / 2)
    sums = weights / weights.sum(-1, keepdims=True) @ heads
    (found,) = run(rewritten, feeds)
    np.testing.assert_allclose(found, sums.transpose(0, 2, 1, 3).reshape(2, 3, 8) / 2, atol=1e-5)


def test_raw_scores_are_not_capped():
    model = parse(
        "(float[2,2,3,8] x) => (float[2,2,3,8] y, float[2,2,3,3] s) { y, , , s = Attention<softcap=0.1>(x,x,x) }"
    )
    feeds = random_feeds(model)
    scores = feeds["x"] @ feeds["x"].swapaxes(-1, -2) / np.sqrt(8)
    np.testing.assert_allclose(run(decompose_attention(model), feeds)[1], scores, atol=1e-5)


def test_a_mask_of_integers_is_added():
    graph = "(float[2,2,3,8] x, {}[3] m) => (float[2,2,3,8] y) {{ y = Attention(x, x, x, m) }}"
    feeds = random_feeds(parse(graph.format("float")))
    expected = run(decompose_attention(parse(graph.format("float"))), feeds | {"m": np.float32([2, 0, -3])})
    found = run(decompose_attention(parse(graph.format("int32"))), feeds | {"m": np.int32([2, 0, -3])})
    np.testing.assert_array_equal(found[0], expected[0])


def test_values_of_another_type_than_keys():
    model = parse(
        """(float[2,2,3,8] x, double[2,2,3,8] v, float[2,2,4,8] pk, double[2,2,4,8] pv)
        => (float[2,2,3,8] y, float[2,2,7,8] nk, double[2,2,7,8] nv) { y, nk, nv = Attention(x, x, v, , pk, pv) }"""
    )
    feeds = random_feeds(model)
    found = run(decompose_attention(model), {**feeds, **{name: feeds[name].astype(np.float64) for name in ("v", "pv")}})
    assert [array.dtype for array in found] == [np.float32, np.float32, np.float64]
    text = onnx.printer.to_text(model).replace("double", "float")
    np.testing.assert_allclose(found[0], run(parser.parse_model(text), feeds)[0], atol=1e-5)


def test_the_model_given_stays_as_it_is_and_weights_are_carried():
    model = parse("(float[2,2,600,8] x) => (float[2,2,600,8] y) { w = Neg(x) z = Add(x, w) y = Attention(z, z, z) }")
    del model.graph.node[0]
    weights = np.random.default_rng(0).normal(size=(2, 2, 600, 8)).astype(np.float32)
    model.graph.initializer.append(onnx.numpy_helper.from_array(weights, "w"))
    before = model.SerializeToString()
    rewritten = assert_same(model, random_feeds(model))
    assert model.SerializeToString() == before
    carried = next(tensor for tensor in rewritten.graph.initializer if tensor.name == "w")
    np.testing.assert_array_equal(onnx.numpy_helper.to_array(carried), weights)
    assert decompose_attention(model, opset=18, in_place=True) is model
    assert {tensor.name for tensor in model.graph.initializer} == {t.name for t in rewritten.graph.initializer}
    del model.graph.initializer[:], rewritten.graph.initializer[:]
    assert model == rewritten


def test_external_weights_are_not_read(tmp_path):
    model = parse("(float[2,2,600,8] x) => (float[2,2,600,8] y) { w = Neg(x) z = Add(x, w) y = Attention(z, z, z) }")
    del model.graph.node[0]
    model.graph.initializer.append(onnx.numpy_helper.from_array(np.ones((2, 2, 600, 8), np.float32), "w"))
    onnx.save(model, tmp_path / "m.onnx", save_as_external_data=True, location="weights", size_threshold=0)
    (tmp_path / "weights").unlink()
    outline = onnx.load(tmp_path / "m.onnx", load_external_data=False)
    rewritten = decompose_attention(outline, opset=18)
    assert rewritten.graph.initializer[0] == outline.graph.initializer[0]


def test_a_model_without_attention_stays_the_same():
    model = parse("(float[2,3] x) => (float[2,3] y) { y = Gelu(x) }")
    assert decompose_attention(model) == model


@pytest.mark.parametrize(("kind", "name", "opset"), [("caption", "decoder", 23), ("transformer", "classifier", 24)])
def test_exported_graphs(graph, role, kind, name, opset):
    """As exact as they were; widths are not sought at run time, nor masks padded."""
    rewritten = decompose_attention(graph(kind, name, "standard", opset), opset=18)
    assert check_parity(rewritten, role(kind, name)).largest_error < 2e-5
    assert not {"Reciprocal", "Pad"} & examine(rewritten).operators.keys()


@pytest.mark.parametrize(
    "body",
    [
        "(float[b,8] x) => (float[b,8] y) { y = Gelu(x) }",
        "(float[b,8] x) => (float[b,8] y) { y = Gelu<approximate='tanh'>(x) }",
        "(float[b,8] x, float[8] s) => (float[b,8] y) { z = RMSNormalization(x, s) y = Swish(z) }",
        "(float[2,4,4,4] x, float[4] s) => (float[2,4,4,4] y) { y = GroupNormalization<num_groups = 2>(x, s, s) }",
        "(float[b,2,5,8] x, float[b,5,4] c) => (float[b,2,5,8] y) { y = RotaryEmbedding(x, c, c) }",
        "(float[1,1,4,4] x) => (float[1,1,3,3] y) { y = AveragePool<kernel_shape=[2,2], dilations=[1,1]>(x) }",
        "(float[b,6] x) => (float[b,6] y) { z = Cast<to=10, saturate=1>(x) y = Cast<to=1>(z) }",
        """(float[b,n,8] x) => (float[b,n,8] y)
        { z = Attention<q_num_heads=2, kv_num_heads=2>(x, x, x) s = Shape(x) r = Reshape(z, s) y = Gelu(r) }""",
    ],
)
def test_an_older_opset(body):
    model = parse(body.replace("'", '"'), opset=24)
    rewritten = assert_same(model, random_feeds(model, b=2, n=3))
    assert rewritten.ir_version == 8


@pytest.mark.parametrize(
    ("body", "opset", "message"),
    [
        ("(float[2,4,4,8] x, int64[2] s) => (float[2,4,4,8] y) { y = TensorScatter(x, x, s) }", 18, "TensorScatter y"),
        ("(float[1,1,4,4] x, float[1,2,2,2] s) => (float[1,1,2,2] y) { y = GridSample(x, s) }", 18, "GridSample y"),
        ("(float[4] x, int64[2] s) => (float[m] y) { y = Pad<mode='wrap'>(x, s) }", 18, "found mode=wrap"),
        ("(float[4] x) => (float8e4m3fn[4] y) { y = Cast<to=17,saturate=0>(x) }", 18, "found saturate=0"),
        ("(float[4] x) => (float8e4m3fn[4] y) { y = Cast<to=17>(x) }", 18, "element types that opset 18 has"),
        ("(int4[4,4] x, float s) => (float[4,4] y) { y = DequantizeLinear(x, s) }", 18, "element types that opset 18"),
        ("(int4[4,4] x, float[2,4] s) => (float[4,4] y) { y = DequantizeLinear<axis=0,block_size=2>(x, s) }", 20, "=2"),
        (
            "(float[1,1,9,9] x) => (float[1,1,m,n] y) { y = MaxPool<kernel_shape=[2,2],ceil_mode=1>(x) }",
            18,
            "found ceil_mode=1",
        ),
        ("(float[4] x) => (float[4] y) { y = Relu(x) }", 17, "expected 18 to 24, which the model imports, found 17"),
        ("(float[4] x) => (float[4] y) { y = Relu(x) }", 25, "expected 18 to 24, which the model imports, found 25"),
    ],
)
def test_an_older_opset_is_refused(body, opset, message):
    model = parse(body.replace("'", '"'), opset=24)
    before = model.SerializeToString()
    with pytest.raises(XattnError) as caught:
        decompose_attention(model, opset=opset, in_place=True)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
    assert model.SerializeToString() == before


@pytest.mark.parametrize(
    ("node", "message"),
    [
        ("Attention(x, x)", "expected query, key and value, found 2 inputs"),
        ("Attention(x, x, x, , p)", "expected past_key and past_value together"),
        ("Attention(x, x, x, , p, p, n)", "expected past_key or nonpad_kv_seqlen, found both"),
        ("Attention(f, f, f)", "expected q_num_heads and kv_num_heads with 3D inputs, found (0, 0)"),
        ("Attention<q_num_heads=3, kv_num_heads=3>(f, f, f)", "f: expected a width that 3 heads divide, found 8"),
        ("Attention(x, t, t)", "expected query heads that are a multiple of the key heads, found 2 and 3"),
        ("Attention<scale=-1.0>(x, x, x)", "expected a scale of 0 or more, found -1"),
        ("Attention<qk_matmul_output_mode=4>(x, x, x)", "expected a qk_matmul_output_mode of 0 to 3, found 4"),
        ("Attention<softmax_precision=7>(x, x, x)", "expected a floating-point softmax_precision"),
        ("Attention<sinks=1>(x, x, x)", "expected the attributes of opsets 23 to 25, found sinks"),
        ("Attention(x, x, x, u)", "expected a mask of a known element type, found none for u"),
        ("Attention(u, u, u)", "expected inputs of a known element type, found none for its query"),
    ],
)
def test_a_call_against_the_specification(node, message):
    model = parser.parse_model(
        """<ir_version: 10, opset_import: ["" : 24, "other" : 1]>
        g (float[1,2,5,8] x, float[1,3,5,8] t, float[1,5,8] f, float[1,2,2,8] p, int64[1] n) => (y)
        { u = other.Thing(x) y = """
        + node
        + " }"
    )
    with pytest.raises(XattnError) as caught:
        decompose_attention(model)
    assert f"Attention y: {message}" in str(caught.value)


def test_an_opset_before_attention():
    model = parser.parse_model(
        '<ir_version: 8, opset_import: ["" : 18]> g (float[1] x) => (float[1] y) { y = Attention(x, x, x) }'
    )
    with pytest.raises(XattnError, match="expected opset 23 or later in a model with Attention, found 18"):
        decompose_attention(model)
