"""The reader of ONNX headers beside the package onnx, and on files that are none."""

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper, parser

from xattn_export.graph.conformance import examine, header_of
from xattn_runtime.bundle.folder import shipped_bundles
from xattn_runtime.bundle.graph_facts import facts_of
from xattn_runtime.bundle.onnx_header import WeightHeader, parse_header, read_header
from xattn_runtime.bundle.standard_operators import not_standard
from xattn_runtime.errors import BundleError

GRAPH = '<ir_version: 10, opset_import: ["" : 21]> g (float[n] x, bool b) => (float[n] y) '
NESTED = GRAPH + (
    "{ y = If (b) <then_branch = t () => (float[n] c) { a = Relu(x) c = If (b) <then_branch = u () => (float[n] d) "
    "{ d = Abs(a) }, else_branch = v () => (float[n] e) { e = com.microsoft.Gelu(a) }> }, "
    "else_branch = w () => (float[n] f) { f = Identity(x) }> }"
)
FUNCTION = """<ir_version: 10, opset_import: ["" : 21, "local" : 1]>
g (float[n] x) => (float[n] y) { y = local.twice(x) }
<domain: "local", opset_import: ["" : 20]> twice (x) => (y) { y = Add(x, x) }"""


def graphs_of(bundle: Path) -> list[Path]:
    return sorted((bundle / "graphs").glob("*.onnx"))


@pytest.mark.parametrize("bundle", shipped_bundles())
def test_of_the_bundles_that_ship(bundle):
    for path in graphs_of(shipped_bundles()[bundle]):
        model = onnx.load(path, load_external_data=False)
        assert read_header(path) == header_of(model)
        assert facts_of(read_header(path)) == examine(model)


@pytest.mark.parametrize("bundle", ["caption", "lstm"])
def test_of_exported_bundles(exported, bundle):
    for path in graphs_of(exported[bundle]):
        assert read_header(path) == header_of(onnx.load(path, load_external_data=False))


@pytest.mark.parametrize("text", [NESTED, FUNCTION])
def test_of_subgraphs_and_functions(text):
    model = parser.parse_model(text)
    header = parse_header(model.SerializeToString())
    assert header == header_of(model)
    assert facts_of(header) == examine(model)


def test_what_subgraphs_and_functions_hold_is_counted():
    models = [parser.parse_model(text) for text in (NESTED, FUNCTION)]
    nested, function = (facts_of(parse_header(model.SerializeToString())) for model in models)
    assert nested.operators == {"Abs": 1, "If": 2, "Identity": 1, "Relu": 1, "com.microsoft::Gelu": 1}
    assert nested.domains == ("ai.onnx", "com.microsoft")
    assert nested.offences == ("the graph holds com.microsoft::Gelu, which is not of ai.onnx",)
    assert function.operators == {"Add": 1, "local::twice": 1}


def test_of_weights():
    tensors = [
        numpy_helper.from_array(np.zeros((2, 3), np.int8), "bytes"),
        helper.make_tensor("floats", TensorProto.FLOAT, [4], [1.0, 2.0, 3.0, 4.0]),
        helper.make_tensor("scalar", TensorProto.INT64, [], [7]),
    ]
    outside = numpy_helper.from_array(np.zeros(8, np.float16), "outside")
    onnx.external_data_helper.set_external_data(outside, "other.data", offset=4096, length=16)
    outside.ClearField("raw_data")
    model = parser.parse_model(GRAPH + "{ y = Relu(x) }")
    model.graph.initializer.extend([*tensors, outside])
    weights = parse_header(model.SerializeToString()).bodies[0].weights
    assert weights == (
        WeightHeader(TensorProto.INT8, (2, 3)),
        WeightHeader(TensorProto.FLOAT, (4,)),
        WeightHeader(TensorProto.INT64, ()),
        WeightHeader(TensorProto.FLOAT16, (8,), "other.data"),
    )


def field(number: int, content: bytes) -> bytes:
    """A field of bytes, of fewer than 2 ** 14 of them."""
    size = len(content)
    length = bytes([size]) if size < 128 else bytes([size & 127 | 128, size >> 7])
    key = number << 3 | 2
    return (bytes([key]) if key < 128 else bytes([key & 127 | 128, key >> 7])) + length + content


def test_shapes_may_be_packed_and_parts_may_come_in_pieces():
    """As protobuf allows: numbers one after another in one field, and a message in several."""
    node = field(1, field(4, b"Relu"))
    weight = field(5, field(1, b"\x02\xac\x02") + b"\x10\x01")
    content = b"\x08\x0a" + field(8, b"\x10\x15") + field(7, node) + field(7, node + weight)
    header = parse_header(content)
    assert header == header_of(onnx.load_model_from_string(content))
    assert len(header.bodies[0].nodes) == 2
    assert header.bodies[0].weights == (WeightHeader(TensorProto.FLOAT, (2, 300)),)


def _nested(depth: int) -> bytes:
    graph = b""
    for _ in range(depth):
        attribute = field(6, graph) + b"\xa0\x01\x05"
        graph = field(1, field(5, attribute))
    return field(7, graph)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"\xff" * 11, "a number of more than 64 bits"),
        (b"\x08", "a number that ends before it is whole"),
        (b"\x3a\xff\xff\xff\xff\x0f", "a field that is longer than what holds it"),
        (b"\x3a\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01", "a field that is longer than what holds it"),
        (b"\x3b\x3c", "a field of wire type 3"),
        (b"\x02\x00", "a field without a number"),
        (field(7, field(1, field(4, b"\xff\xfe"))), "a name that is no text"),
        (field(7, field(1, field(4, b"R" * 5000))), "a name of 5000 bytes"),
        (_nested(30), "more than 32 messages within each other"),
    ],
)
def test_hostile_files(content, reason):
    with pytest.raises(ValueError, match=reason):
        parse_header(content)


def test_a_file_of_too_many_fields(monkeypatch):
    monkeypatch.setattr("xattn_runtime.bundle.onnx_header._MOST_FIELDS", 100)
    with pytest.raises(ValueError, match="more than 100 fields"):
        parse_header(b"\x08\x0a" * 101)


@pytest.mark.parametrize("seed", range(200))
def test_altered_bytes_are_refused_or_read_and_never_crash(seed):
    content = bytearray(parser.parse_model(NESTED).SerializeToString())
    generator = np.random.default_rng(seed)
    for place in generator.integers(len(content), size=3):
        content[place] = generator.integers(256)
    try:
        facts_of(parse_header(bytes(content)))
    except ValueError:
        return


def test_the_error_names_the_file(tmp_path):
    path = tmp_path / "graph.onnx"
    for content in (b"", b"not a model\n", bytes(50)):
        path.write_bytes(content)
        with pytest.raises(BundleError, match=r"graph\.onnx: expected an ONNX model, found"):
            read_header(path)


def test_the_table_of_operators_is_that_of_onnx():
    known = {schema.name for schema in onnx.defs.get_all_schemas_with_history() if schema.domain == ""}
    for name in (*known, "Foo"):
        for opset in range(1, onnx.defs.onnx_opset_version() + 1):
            try:
                deprecated = onnx.defs.get_schema(name, opset).deprecated
                expected = f"which opset {opset} deprecates" if deprecated else None
            except onnx.defs.SchemaError:
                expected = f"which opset {opset} does not have"
            assert not_standard(name, opset) == expected
