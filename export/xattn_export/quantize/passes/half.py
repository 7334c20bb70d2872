"""fp16: weights and computation in half precision, but for nodes whose values would leave its range.

Inputs and outputs stay float32, as the contract of every role has it. Which inputs of an operator may be fp16 is read
from ONNX's own definition of it. A weight at a time is converted, whatever the size of the graph.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper, shape_inference

from xattn_export.graph.conformance import subgraphs
from xattn_export.quantize.base.layers import layer_name
from xattn_export.quantize.base.prepare import Constants, write_nodes

__all__ = [
    "FP16_LARGEST",
    "STANDS_FOR_INFINITY",
    "convert_to_half",
    "float_tensors",
    "largest_weights",
    "overflowing_nodes",
    "with_sums_of_squares",
]

FP16_LARGEST = 65504.0
"""The greatest number of half precision."""

STANDS_FOR_INFINITY = 1e30
"""What masks are filled with, where they do not hold infinity itself, is beyond."""

_HALF = "tensor(float16)"
# Half of the range is left for inputs other than those seen.
_MARGIN = 2.0
_SQUARES = "_squares"


def float_tensors(model: ModelProto) -> set[str]:
    """The float32 tensors that nodes compute."""
    graph = shape_inference.infer_shapes(model).graph
    values = (*graph.value_info, *graph.output)
    floats = {value.name for value in values if value.type.tensor_type.elem_type == TensorProto.FLOAT}
    return floats.intersection(name for node in graph.node for name in node.output)


def with_sums_of_squares(model: ModelProto) -> ModelProto:
    """A copy that also computes what normalizations sum on their way, for `overflowing_nodes` to be told of.

    An engine that heeds `stash_type` sums in float32; others, ONNX's reference implementation among them, in the
    precision of the input.
    """
    scanned = ModelProto()
    scanned.CopyFrom(model)
    last = helper.make_tensor(f"scan.last{_SQUARES}", TensorProto.INT64, [1], [-1])
    added = [new for node in model.graph.node for new in _sum_of_squares(node, last.name)]
    if added:
        scanned.graph.initializer.append(last)
        scanned.graph.node.extend(added)
    return scanned


def _sum_of_squares(node: NodeProto, last: str) -> list[NodeProto]:
    """Nodes that compute the sums of squares of a normalization: of what lies from its axis on, or of each group."""
    attributes = {attribute.name: attribute.i for attribute in node.attribute}
    together, sums = f"{node.output[0]}{_SQUARES}_together", f"{node.output[0]}{_SQUARES}"
    if node.op_type in ("LayerNormalization", "RMSNormalization"):
        gather = [helper.make_node("Flatten", [node.input[0]], [together], axis=attributes.get("axis", -1))]
    elif node.op_type == "GroupNormalization":
        shape = helper.make_tensor("shape", TensorProto.INT64, [3], [0, attributes["num_groups"], -1])
        gather = [
            helper.make_node("Constant", [], [f"{together}_shape"], value=shape),
            helper.make_node("Reshape", [node.input[0], f"{together}_shape"], [together]),
        ]
    elif node.op_type == "ReduceL2":
        return [helper.make_node("Mul", [node.output[0], node.output[0]], [sums])]
    else:
        return []
    return [*gather, helper.make_node("ReduceSumSquare", [together, last], [sums], keepdims=0)]


def largest_weights(model: ModelProto, folder: Path | None = None) -> dict[str, float]:
    """Constant → the largest magnitude in it; what masks are filled with is passed over.

    folder: where weights lie that are beside the graph.
    """
    constants = Constants(model.graph, folder)
    names = {name for node in model.graph.node for name in node.input if constants.is_float_of_any_rank(name)}
    return {name: _largest(constants.values(name)) for name in names}


def _largest(values: NDArray[np.float32]) -> float:
    sizes = np.abs(values)
    return float(sizes.max(initial=0, where=sizes < STANDS_FOR_INFINITY))


def overflowing_nodes(model: ModelProto, largest: Mapping[str, float]) -> set[str]:
    """The nodes that must stay in fp32, by name, when the largest magnitudes of tensors are those given.

    largest: of tensors and weights of the graph, and of those that `with_sums_of_squares` adds.
    """
    found = set()
    for node in model.graph.node:
        names = (*node.input, *node.output, f"{node.output[0]}{_SQUARES}")
        if max(largest.get(name, 0.0) for name in names) * _MARGIN > FP16_LARGEST:
            found.add(layer_name(node))
    return found


def convert_to_half(model: ModelProto, keep: Collection[str], folder: Path | None = None) -> int:
    """Compute in fp16, in place, but for the nodes `keep`, by name; how many nodes do.

    folder: where weights lie that are beside the graph.
    """
    converter = _Converter(model, Constants(model.graph, folder), float_tensors(model))
    for node in model.graph.node:
        converter.add(node, stays=layer_name(node) in keep)
    return converter.finish()


class _Converter:
    """Writes the nodes anew, and knows of every float tensor whether it is there in fp32, fp16 or both."""

    def __init__(self, model: ModelProto, constants: Constants, floats: set[str]) -> None:
        self._graph = model.graph
        self._opset = next(entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx"))
        self._constants = constants
        self._floats = floats | {
            value.name for value in model.graph.input if value.type.tensor_type.elem_type == TensorProto.FLOAT
        }
        self._is_half: set[str] = set()
        self._casts: dict[tuple[str, bool], str] = {}
        self._nodes: list[NodeProto] = []
        self._converted = 0

    def add(self, node: NodeProto, *, stays: bool) -> None:
        """`node` in fp16 if it may be, with the casts that it needs."""
        new = NodeProto.FromString(node.SerializeToString())
        places = [] if stays else self._half_places(node)
        for place, name in enumerate(node.input):
            if name:
                new.input[place] = self._read(name, as_half=place in places)
        gives_floats = any(name in self._floats for name in node.output)
        if places or (gives_floats and not stays and _has_float_type(new)):
            _retype(new)
            self._is_half.update(name for name in node.output if name in self._floats)
            self._converted += 1
        self._nodes.append(new)

    def finish(self) -> int:
        """Put the nodes into the graph; how many of them compute in fp16."""
        outputs = {output.name for output in self._graph.output} & self._is_half
        for node in self._nodes:
            for names in (node.input, node.output):
                names[:] = [f"{name}_half" if name in outputs else name for name in names]
        self._nodes += [
            helper.make_node("Cast", [f"{name}_half"], [name], name=f"{name}_full", to=TensorProto.FLOAT)
            for name in sorted(outputs)
        ]
        write_nodes(self._graph, self._nodes)
        del self._graph.value_info[:]
        self._constants.write_back()
        return self._converted

    def _half_places(self, node: NodeProto) -> list[int]:
        """The inputs that become fp16; none where the operator takes no fp16, or takes no floats."""
        if node.domain not in ("", "ai.onnx") or any(True for _ in subgraphs(node)):
            return []
        schema = onnx.defs.get_schema(node.op_type, self._opset)
        allowed = {entry.type_param_str: set(entry.allowed_type_strs) for entry in schema.type_constraints}
        places = []
        for place, name in enumerate(node.input):
            formal = schema.inputs[min(place, len(schema.inputs) - 1)]
            is_float = name in self._floats or self._constants.is_float_of_any_rank(name)
            if is_float and _HALF in allowed.get(formal.type_str, {formal.type_str}):
                places.append(place)
        return places

    def _read(self, name: str, *, as_half: bool) -> str:
        """The name under which `name` is there in the precision asked for."""
        if name not in self._floats and not self._constants.is_float_of_any_rank(name):
            return name
        if as_half == (name in self._is_half):
            return name
        if (name, as_half) not in self._casts:
            self._casts[name, as_half] = self._converted_name(name, as_half)
        return self._casts[name, as_half]

    def _converted_name(self, name: str, as_half: bool) -> str:
        if as_half and name in self._constants:
            return self._constants.add(f"{name}_fp16", _as_half(self._constants.values(name)))
        output = f"{name}_{'fp16' if as_half else 'fp32'}"
        to = TensorProto.FLOAT16 if as_half else TensorProto.FLOAT
        self._nodes.append(helper.make_node("Cast", [name], [output], name=output, to=to))
        return output


def _as_half(values: NDArray[np.float32]) -> NDArray[np.float16]:
    """Numbers beyond the range become its ends; infinities, which masks hold, stay."""
    return np.where(np.isinf(values), values, np.clip(values, -FP16_LARGEST, FP16_LARGEST)).astype(np.float16)


def _has_float_type(node: NodeProto) -> bool:
    """Whether an attribute of `node` makes its result float32."""
    is_float = any(
        attribute.name in ("to", "dtype") and attribute.i == TensorProto.FLOAT for attribute in node.attribute
    )
    return is_float or any(attribute.t.data_type == TensorProto.FLOAT for attribute in node.attribute)


def _retype(node: NodeProto) -> None:
    """Attributes that make a result float32 make it fp16."""
    for attribute in node.attribute:
        if attribute.name in ("to", "dtype") and attribute.i == TensorProto.FLOAT:
            attribute.i = TensorProto.FLOAT16
        if attribute.HasField("t") and attribute.t.data_type == TensorProto.FLOAT:
            values = _as_half(numpy_helper.to_array(attribute.t))
            attribute.t.CopyFrom(numpy_helper.from_array(values, attribute.t.name))
