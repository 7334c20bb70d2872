"""Every mode, on a whole bundle: standard operators, smaller, verified, and recorded."""

import json
import re
import shutil
from typing import get_args, get_type_hints

import numpy as np
import onnx
import pytest
from onnx import numpy_helper, parser

from xattn_edge.commands.models.quantize import quantize
from xattn_export import QuantizeOptions, inspect_path, quantize_bundle
from xattn_export.quantize.base.layers import check_weights
from xattn_export.quantize.calibration.examples import golden_examples
from xattn_export.quantize.modes.table import mode_names
from xattn_runtime.bundle.folder import open_bundle
from xattn_runtime.errors import UserError
from xattn_runtime.loader import load
from xattn_runtime.verify.golden import measure, verify_bundle

RATIOS = {"int8": 0.45, "int8-static": 0.45, "int8-weight": 0.45, "int4": 0.4, "fp16": 0.65}
LARGEST_LOSS = {"int8": 0.05, "int8-static": 0.1, "int8-weight": 0.05, "int4": 0.3, "fp16": 0.005}


@pytest.fixture(scope="module")
def made_and_read(exported, reads, tmp_path_factory):
    """mode → (bundle, report), and mode → how often each of the source's graphs was read."""
    folder = tmp_path_factory.mktemp("modes")
    examples = golden_examples(open_bundle(exported["caption"]))
    made, counts = {}, {}
    for mode in RATIOS:
        path = folder / f"{mode}.xattn"
        with reads(exported["caption"]) as counts[mode]:
            made[mode] = path, quantize_bundle(exported["caption"], path, mode=mode, examples=examples).to_dict()
    return made, counts


@pytest.fixture(scope="module")
def made(made_and_read):
    """mode → (bundle, report)."""
    return made_and_read[0]


@pytest.mark.parametrize("mode", RATIOS)
def test_each_graph_is_read_and_prepared_once(made_and_read, exported, once, mode):
    assert made_and_read[1][mode] == once(exported["caption"])


def test_the_command_has_every_mode():
    choices = get_args(get_type_hints(quantize)["mode"])
    assert sorted(choices) == sorted([*mode_names(), "auto"])


@pytest.mark.parametrize("mode", RATIOS)
def test_smaller_standard_and_near(made, exported, mode):
    path, report = made[mode]
    assert json.loads(json.dumps(report)) == report
    before, after = (sum(graph[f"bytes_{when}"] for graph in report["graphs"].values()) for when in ("before", "after"))
    assert after / before < RATIOS[mode]
    assert 0 < report["largest_relative_rms"] < LARGEST_LOSS[mode]
    inspected = inspect_path(path).to_dict()
    assert inspected["standard"] is True
    assert {domain for graph in inspected["graphs"].values() for domain in graph["domains"]} == {"ai.onnx"}
    manifest = open_bundle(path).manifest
    assert manifest.opset == open_bundle(exported["caption"]).manifest.opset
    assert manifest.quantization["components"] == {"image_encoder": mode, "decoder": mode}
    assert manifest.quantization["calibration"] == {"data": "golden", "examples": len(manifest.golden.cases)}
    assert verify_bundle(path).passed


def test_each_mode_has_the_operators_of_its_form(made):
    found = {mode: report["graphs"]["decoder"]["operators"] for mode, (_, report) in made.items()}
    assert found["int8"]["MatMulInteger"] == made["int8"][1]["graphs"]["decoder"]["int8_products"] > 0
    assert found["int8-static"]["QuantizeLinear"] > 0
    assert "MatMulInteger" not in found["int8-static"]
    for mode in ("int8-weight", "int4"):
        assert found[mode]["DequantizeLinear"] > 0
        assert not {"QuantizeLinear", "DynamicQuantizeLinear", "MatMulInteger"} & found[mode].keys()
    assert "DequantizeLinear" not in found["fp16"]


def test_half_precision_is_in_the_weights(made):
    path, _ = made["fp16"]
    graph = onnx.load(path / "graphs" / "decoder.onnx").graph
    large = [tensor for tensor in graph.initializer if np.prod(tensor.dims) > 256]
    assert large
    assert {tensor.data_type for tensor in large} <= {onnx.TensorProto.FLOAT16, onnx.TensorProto.INT64}
    outputs = {value.type.tensor_type.elem_type for value in graph.output}
    assert outputs == {onnx.TensorProto.FLOAT, onnx.TensorProto.INT64}


def test_what_needs_data_says_so(exported, tmp_path):
    cases = (
        ({"mode": "int8-static"}, "mode int8-static: expected data to calibrate on, found none"),
        ({"options": QuantizeOptions(rounding="gptq")}, "rounding gptq: expected data"),
        ({"options": QuantizeOptions(smooth=0.5)}, "smoothing: expected data"),
    )
    for options, message in cases:
        with pytest.raises(UserError, match=message):
            quantize_bundle(exported["lstm"], tmp_path / "out.xattn", **options)
    assert list(tmp_path.iterdir()) == []


def test_options_out_of_range(exported, tmp_path):
    cases = (
        (QuantizeOptions(block=48), "block: expected one of 16, 32, 64, 128, found 48"),
        (QuantizeOptions(rounding="up"), "rounding: expected one of nearest, fitted, hqq, gptq, found 'up'"),
        (QuantizeOptions(range_method="all"), "range: expected one of min-max, entropy, percentile, found 'all'"),
        (QuantizeOptions(percentile=10.0), "percentile: expected 90 to 100, found 10.0"),
        (QuantizeOptions(smooth=1.5), "smooth: expected 0 to 1, found 1.5"),
    )
    for options, message in cases:
        with pytest.raises(UserError, match=message):
            quantize_bundle(exported["lstm"], tmp_path / "out.xattn", options=options)


@pytest.mark.parametrize(
    "options",
    [QuantizeOptions(block=16, symmetric=False), QuantizeOptions(block=128), QuantizeOptions(exact_activations=True)],
    ids=["asymmetric", "wide", "exact"],
)
def test_forms_of_int4(exported, tmp_path, options):
    path = tmp_path / "int4.xattn"
    report = quantize_bundle(exported["caption"], path, mode="int4", options=options)
    graph = onnx.load(path / "graphs" / "decoder.onnx", load_external_data=False).graph
    blocks = [node for node in graph.node if node.op_type == "DequantizeLinear"]
    assert len(blocks) == report.graphs["decoder"].layers["int4_products"] > 0
    assert {len(node.input) for node in blocks} == {2 if options.symmetric else 3}
    assert max(one.i for node in blocks for one in node.attribute if one.name == "block_size") <= options.block
    assert open_bundle(path).manifest.session_options["session.qdq_matmulnbits_accuracy_level"] == (
        "1" if options.exact_activations else "4"
    )
    assert report.largest_relative_rms < LARGEST_LOSS["int4"]


def test_one_layer_may_have_a_mode_of_its_own(exported, tmp_path):
    layers = [node.name for node in onnx.load(exported["caption"] / "graphs" / "decoder.onnx").graph.node]
    head = next(name for name in reversed(layers) if "MatMul" in name or "Gemm" in name)
    path = tmp_path / "mixed.xattn"
    report = quantize_bundle(exported["caption"], path, mode="int4", components={f"decoder/{head}": "fp32"})
    whole = quantize_bundle(exported["caption"], tmp_path / "whole.xattn", mode="int4")
    assert report.graphs["decoder"].layers["int4_products"] == whole.graphs["decoder"].layers["int4_products"] - 1
    assert open_bundle(path).manifest.quantization["components"][f"decoder/{head}"] == "fp32"
    with pytest.raises(UserError, match="component decoder/none: expected a layer such as"):
        quantize_bundle(exported["caption"], tmp_path / "out.xattn", components={"decoder/none": "int4"})


def test_better_rounding_is_nearer(exported, tmp_path):
    """gptq and fitted against rounding to nearest, by the logits of the golden inputs."""
    examples = golden_examples(open_bundle(exported["caption"]))
    losses = {}
    for rounding in ("nearest", "fitted", "hqq", "gptq"):
        path = tmp_path / f"{rounding}.xattn"
        options = QuantizeOptions(rounding=rounding, exact_activations=True)
        quantize_bundle(exported["caption"], path, mode="int4", options=options, examples=examples)
        losses[rounding] = np.mean([case.relative_rms for case in measure(load(path))])
    assert losses["fitted"] < losses["nearest"]
    assert losses["gptq"] < losses["nearest"]


def test_what_is_quantized_already(made, tmp_path):
    with pytest.raises(UserError, match="is fp16 already"):
        quantize_bundle(made["fp16"][0], tmp_path / "out.xattn", mode="int4")
    assert list(tmp_path.iterdir()) == []


def test_nothing_to_quantize(exported, vqa_bundle, tmp_path):
    """All weights of the second bundle are small."""
    output = tmp_path / "out.xattn"
    with pytest.raises(UserError, match="mode: expected a mode other than fp32 for some graph or layer"):
        quantize_bundle(exported["lstm"], output, mode="fp32")
    with pytest.raises(UserError, match="expected weights that int8 makes smaller, found nothing to quantize"):
        quantize_bundle(vqa_bundle, output)
    assert not output.exists()


def test_a_bundle_says_where_activations_are_bytes(made):
    said = {mode: open_bundle(path).manifest.quantization["int8_activations"] for mode, (path, _) in made.items()}
    both = ["image_encoder", "decoder"]
    assert said == {"int8": both, "int8-static": both, "int8-weight": both, "int4": both, "fp16": []}


@pytest.fixture
def altered(exported, rewrite, tmp_path):
    """The VQA bundle with a recurrence, a constant input of an operator of it made another; and that constant's name.

    `altered(operator, place, change)`: `change` alters the values, float32, in place.
    """

    def make(operator, place, change):
        source = tmp_path / "altered.xattn"
        shutil.copytree(exported["lstm"], source)
        path = source / "graphs" / "classifier.onnx"
        model = onnx.load(path)
        weights = {tensor.name: tensor for tensor in model.graph.initializer}
        node = next(node for node in model.graph.node if node.op_type == operator and node.input[place] in weights)
        tensor = weights[node.input[place]]
        values = numpy_helper.to_array(tensor).copy()
        change(values)
        tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))
        onnx.save(model, path)
        rewrite(source, open_bundle(exported["lstm"]).manifest)
        return source, tensor.name

    return make


@pytest.mark.parametrize(("mode", "value"), [("int8", np.nan), ("fp16", np.nan), ("fp16", np.inf)])
@pytest.mark.parametrize(("operator", "place"), [("MatMul", 1), ("LSTM", 1), ("LSTM", 2), ("LayerNormalization", 1)])
def test_weights_that_are_not_finite(altered, tmp_path, operator, place, mode, value):
    """What a damaged recurrence gives is finite all the same on ONNX Runtime, and fp16 would carry the damage on."""

    def damage(values):
        values[(0,) * values.ndim] = value

    source, name = altered(operator, place, damage)
    with pytest.raises(UserError, match=f"^classifier: {re.escape(name)}: expected finite weights, found NaN or inf"):
        quantize_bundle(source, tmp_path / "out.xattn", mode=mode, examples=golden_examples(open_bundle(source)))
    assert {path.name for path in tmp_path.iterdir()} == {"altered.xattn"}


def test_a_mask_may_hold_infinities():
    model = parser.parse_model(
        '<ir_version: 10, opset_import: ["" : 23]> decoder (float[3] x) => (float[3] y) { y = Add(x, mask) }'
    )
    model.graph.initializer.append(numpy_helper.from_array(np.array([0, -np.inf, -np.inf], np.float32), "mask"))
    check_weights(model, "decoder", {})
    model.graph.initializer[0].CopyFrom(numpy_helper.from_array(np.array([0, 1, -np.inf], np.float32), "mask"))
    with pytest.raises(UserError, match=r"^decoder: mask: expected finite weights"):
        check_weights(model, "decoder", {})


def test_activations_that_are_not_finite(altered, tmp_path):
    """Finite weights whose products are not."""
    source, _ = altered("MatMul", 1, lambda values: values.fill(3e38))
    with pytest.raises(UserError, match=r"^classifier: .*: expected finite activations, found NaN or infinity"):
        quantize_bundle(source, tmp_path / "out.xattn")
    assert {path.name for path in tmp_path.iterdir()} == {"altered.xattn"}


@pytest.mark.parametrize("place", [1, 2])
def test_a_recurrence_whose_weights_leave_half_precision_stays(altered, tmp_path, place):
    """Its weights of the input, and of the state before."""

    def enlarge(values):
        values[(0,) * values.ndim] = 1e5

    source, name = altered("LSTM", place, enlarge)
    output = tmp_path / "out.xattn"
    report = quantize_bundle(source, output, mode="fp16")
    graph = onnx.load(output / "graphs" / "classifier.onnx").graph
    recurrence = next(node for node in graph.node if node.op_type == "LSTM")
    types = {tensor.name: tensor.data_type for tensor in graph.initializer}
    assert {types[recurrence.input[place]] for place in (1, 2)} == {onnx.TensorProto.FLOAT}
    assert recurrence.input[place] == name
    assert report.graphs["classifier"].layers["fp16_nodes"] > 0
