"""A cache in two parts: what is computed is what `Attention` computes with the two as one, however they are divided."""

from collections.abc import Mapping
from itertools import product
from typing import Any

import numpy as np
import onnxruntime
import pytest
from numpy.typing import NDArray
from onnx import ModelProto, TensorProto, helper, numpy_helper

from xattn_export.decompose import decompose_attention
from xattn_export.decompose.split_cache import split_cache
from xattn_export.graph.conformance import examine, require_standard, require_valid
from xattn_runtime.bundle.contract import past_names, present_names, role_contract
from xattn_runtime.errors import XattnError

HEADS, WIDTH, LAYERS = 2, 4, 2
Arrays = Mapping[str, NDArray[Any]]


def decoder(*, groups: int = 1, packed: bool = True, mask: str = "", **attributes: Any) -> ModelProto:
    """Two layers of attention, the second of the first one's output, that also say how long the cache is."""
    heads = groups * HEADS
    if packed:
        axes: dict[str, list[str | int | None]] = {
            "query": ["batch", "length", heads * WIDTH],
            "key": ["batch", "length", HEADS * WIDTH],
        }
        options: dict[str, Any] = {"q_num_heads": heads, "kv_num_heads": HEADS}
    else:
        axes = {"query": ["batch", heads, "length", WIDTH], "key": ["batch", HEADS, "length", WIDTH]}
        options = {}
    axes["value"] = axes["key"]
    inputs = [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in axes.items()]
    if mask:
        element = TensorProto.BOOL if mask == "bool" else TensorProto.FLOAT
        inputs.append(helper.make_tensor_value_info("mask", element, ["length", "all"]))
    nodes, query = [], "query"
    cache = past_names(LAYERS), present_names(LAYERS)
    for layer in range(LAYERS):
        past, present = (list(names[2 * layer : 2 * layer + 2]) for names in cache)
        out = f"layer_{layer}"
        read = [query, "key", "value", "mask" if mask else "", *past]
        nodes.append(helper.make_node("Attention", read, [out, *present], name=out, **options, **attributes))
        query = out
    nodes += [
        helper.make_node("Identity", [query], ["attended"]),
        helper.make_node("Shape", ["past_value_1"], ["cached"], start=2, end=3),
        helper.make_node("Shape", ["past_key_0"], ["rows"], start=0, end=1),
    ]
    inputs += [helper.make_tensor_value_info(n, TensorProto.FLOAT, ["batch", HEADS, "past", WIDTH]) for n in cache[0]]
    outputs = [
        helper.make_tensor_value_info("attended", TensorProto.FLOAT, axes["query"]),
        helper.make_tensor_value_info("cached", TensorProto.INT64, [1]),
        helper.make_tensor_value_info("rows", TensorProto.INT64, [1]),
        *(helper.make_tensor_value_info(n, TensorProto.FLOAT, ["batch", HEADS, "total", WIDTH]) for n in cache[1]),
    ]
    graph = helper.make_graph(nodes, "decoder", inputs, outputs)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 23)], ir_version=11)


def run(model: ModelProto, inputs: Arrays) -> Arrays:
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    names = [tensor.name for tensor in session.get_outputs()]
    return dict(zip(names, session.run(names, dict(inputs)), strict=True))


def example(model: ModelProto, batch: int, length: int, past: int) -> Arrays:
    random = np.random.default_rng(7)
    sizes = {"batch": batch, "length": length, "past": past, "all": past + length}
    arrays: dict[str, NDArray[Any]] = {}
    for tensor in model.graph.input:
        shape = [axis.dim_value or sizes[axis.dim_param] for axis in tensor.type.tensor_type.shape.dim]
        arrays[tensor.name] = random.normal(size=shape).astype(np.float32)
        if tensor.type.tensor_type.elem_type == TensorProto.BOOL:
            arrays[tensor.name] = np.tril(np.ones(shape, bool), past - 1)
            arrays[tensor.name][:, 0] = True
    return arrays


def turned(name: str, array: NDArray[Any]) -> NDArray[Any]:
    return array.swapaxes(2, 3) if "_key_" in name else array


def divided(inputs: Arrays, frozen: int) -> Arrays:
    """The first `frozen` tokens of the cache apart from the rest, keys transposed."""
    arrays = dict(inputs)
    for name in past_names(LAYERS):
        whole = arrays[name]
        arrays[name.replace("past_", "frozen_")] = turned(name, whole[:, :, :frozen])
        arrays[name] = turned(name, whole[:, :, frozen:])
    return arrays


@pytest.mark.parametrize(
    "settings",
    [
        {"is_causal": 1},
        {"groups": 3, "is_causal": 1, "scale": 0.3},
        {"groups": 3, "packed": False, "is_causal": 1},
        {"packed": False, "mask": "bool"},
        {"groups": 2, "mask": "float", "softcap": 1.5},
        {"groups": 2, "scale": 1.0},
    ],
    ids=str,
)
def test_it_is_what_attention_computes(settings: dict[str, Any]) -> None:
    model = decoder(**settings)
    split = split_cache(model)
    require_standard(split, "decoder")
    require_valid(split, "decoder", None)
    assert "Attention" in examine(model).operators and "Attention" not in examine(split).operators
    for (batch, length), past in product(((1, 1), (2, 3)), (0, 1, 5)):
        inputs = example(model, batch, length, past)
        expected = run(model, inputs)
        for frozen in sorted({0, past // 2, past}):
            found = run(split, divided(inputs, frozen))
            assert found["cached"] == past and found["rows"] == batch
            np.testing.assert_allclose(found["attended"], expected["attended"], atol=1e-6)
            for name in present_names(LAYERS):
                np.testing.assert_array_equal(found[name], turned(name, expected[name][:, :, frozen:]))


def test_all_rows_may_have_one_frozen_part() -> None:
    model = decoder(groups=3, is_causal=1)
    inputs = dict(example(model, 3, 2, 6))
    for name in past_names(LAYERS):
        inputs[name] = np.concatenate((np.repeat(inputs[name][:1, :, :4], 3, axis=0), inputs[name][:, :, 4:]), axis=2)
    apart = divided(inputs, 4)
    shared = {name: array[:1] if name.startswith("frozen_") else array for name, array in apart.items()}
    expected = run(model, inputs)["attended"]
    np.testing.assert_allclose(run(split_cache(model), shared)["attended"], expected, atol=1e-6)


def test_it_has_the_tensors_of_its_role_and_suits_older_opsets() -> None:
    split = decompose_attention(split_cache(decoder(groups=3, is_causal=1)), opset=18)
    inputs = example(decoder(groups=3, is_causal=1), 2, 3, 4)
    expected = run(decoder(groups=3, is_causal=1), inputs)["attended"]
    np.testing.assert_allclose(run(split, divided(inputs, 2))["attended"], expected, atol=1e-6)
    names = [tensor.name for tensor in split.graph.input]
    contract = role_contract("decoder", [*names, "input_ids"], [tensor.name for tensor in split.graph.output])
    cache = {name for name in contract.inputs if name != "input_ids"}
    assert cache == {name for name in names if name not in ("query", "key", "value")}


def test_a_cache_that_goes_another_way_stays() -> None:
    model = decoder(is_causal=1)
    model.graph.node.append(helper.make_node("Identity", ["past_key_0"], ["other"]))
    with pytest.raises(XattnError, match="expected only Attention to read past_key_0"):
        split_cache(model)
    model = decoder(is_causal=1)
    next(one for one in model.graph.node[-1].attribute if one.name == "end").i = 3
    with pytest.raises(XattnError, match="expected one axis of past_key_0, found 0 to 3"):
        split_cache(model)
    model = decoder(is_causal=1)
    model.graph.input.append(helper.make_tensor_value_info("past_key_2", TensorProto.FLOAT, ["batch", 2, "past", 4]))
    with pytest.raises(XattnError, match="expected an Attention for each of 3 layers, found 2"):
        split_cache(model)


def test_weights_stay_where_they_are() -> None:
    model = decoder(is_causal=1)
    weight = numpy_helper.from_array(np.eye(8, dtype=np.float32), "weight")
    model.graph.initializer.append(weight)
    model.graph.node[-3].CopyFrom(helper.make_node("MatMul", ["layer_1", "weight"], ["attended"]))
    split = split_cache(model)
    assert [tensor for tensor in split.graph.initializer if tensor.name == "weight"] == [weight]
