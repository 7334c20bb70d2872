"""fp16: weights and computation in half precision, but for nodes whose values would leave its range.

Inputs and outputs stay float32, as the contract of every role has it. Which inputs of an operator may be fp16 is read
from ONNX's own definition of it. A weight at a time is converted, whatever the size of the graph.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper, shape_inference

from xattn_export.graph.conformance import subgraphs
from xattn_export.graph.editing import GraphParts, GraphWriter
from xattn_export.quantize.base.layers import layer_name
from xattn_export.quantize.base.passing import Assignment, Draft, Pass

__all__ = [
    "CONVERT_TO_HALF",
    "FP16_LARGEST",
    "INFINITY_SUBSTITUTE",
    "convert_to_half",
    "float_tensors",
    "largest_weights",
    "overflowing_nodes",
    "with_sums_of_squares",
]

FP16_LARGEST = 65504.0
"""The greatest number of half precision."""

INFINITY_SUBSTITUTE = 1e30
"""What masks are filled with, where they do not hold infinity itself, is beyond."""

_HALF = "tensor(float16)"
# Half of the range is left for inputs other than those seen.
_MARGIN = 2.0
_SQUARES = "_squares"


def float_tensors(graph: GraphParts) -> set[str]:
    """The float32 tensors that nodes compute."""
    inferred = shape_inference.infer_shapes(graph.outline()).graph
    values = (*inferred.value_info, *inferred.output)
    floats = {value.name for value in values if value.type.tensor_type.elem_type == TensorProto.FLOAT}
    return floats.intersection(name for node in graph.nodes for name in node.output)


def with_sums_of_squares(model: ModelProto) -> ModelProto:
    """A copy that also outputs the sums inside normalizations, for `overflowing_nodes`.

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


def largest_weights(graph: GraphParts) -> dict[str, float]:
    """Constant → the largest magnitude in it; what masks are filled with is passed over."""
    constants = graph.constants()
    names = {name for node in graph.nodes for name in node.input if constants.is_float(name)}
    return {name: _largest(constants.values(name)) for name in names}


def _largest(values: NDArray[np.float32]) -> float:
    sizes = np.abs(values)
    return float(sizes.max(initial=0, where=sizes < INFINITY_SUBSTITUTE))


def overflowing_nodes(graph: GraphParts, largest: Mapping[str, float]) -> set[str]:
    """The nodes that must stay in fp32, by name, when the largest magnitudes of tensors are `largest`.

    largest: of tensors and weights of the graph, and of those that `with_sums_of_squares` adds.
    """
    overflowing = set()
    for node in graph.nodes:
        names = (*node.input, *node.output, f"{node.output[0]}{_SQUARES}")
        if max(largest.get(name, 0.0) for name in names) * _MARGIN > FP16_LARGEST:
            overflowing.add(layer_name(node))
    return overflowing


def convert_to_half(draft: Draft, assignment: Assignment) -> Draft:
    """Compute in fp16, but for the nodes of `draft` that must stay in float32, and angles of positions.

    In fp16 the whole numbers beyond 2,048 are not all there, and an angle of 500 is known to a quarter of a radian.
    """
    converter, angles = _Converter(draft.graph), _angles(draft.graph)
    for node in draft.graph.nodes:
        is_angle = any(name in angles for name in node.output)
        converter.add(node, stays=is_angle or layer_name(node) in draft.float_nodes)
    return draft.after(converter.finished(), fp16_nodes=converter.converted)


CONVERT_TO_HALF = Pass("convert_to_half", convert_to_half)


def _angles(graph: GraphParts) -> set[str]:
    """Cosines and sines of what is computed from whole numbers and constants alone, and all on the way to them."""
    makers = {name: node for node in graph.nodes for name in node.output}
    fed = {value.name for value in graph.inputs if value.type.tensor_type.elem_type == TensorProto.FLOAT}
    found: set[str] = set()
    for node in graph.nodes:
        if node.op_type not in ("Cos", "Sin"):
            continue
        way, left = {node.output[0]}, list(node.input)
        while left:
            name = left.pop()
            if name not in way:
                way.add(name)
                maker = makers.get(name)
                # The sizes of a tensor are whole numbers, whatever is in it.
                left += [] if maker is None or maker.op_type in ("Shape", "Size") else maker.input
        found |= way if not way & fed else set()
    return found


class _Converter:
    """Writes the nodes anew, and knows of every float tensor whether it exists in fp32, fp16 or both."""

    def __init__(self, graph: GraphParts) -> None:
        self.converted = 0
        self._graph = graph
        self._opset = next(entry.version for entry in graph.frame.opset_import if entry.domain in ("", "ai.onnx"))
        self._constants = graph.constants()
        self._writer = GraphWriter(self._constants)
        self._floats = float_tensors(graph) | {
            value.name for value in graph.inputs if value.type.tensor_type.elem_type == TensorProto.FLOAT
        }
        self._is_half: set[str] = set()
        self._casts: dict[tuple[str, bool], str] = {}

    def add(self, node: NodeProto, *, stays: bool) -> None:
        """`node` in fp16 if it may be, with the casts that it needs."""
        new = NodeProto.FromString(node.SerializeToString())
        places = [] if stays else self._half_places(node)
        for place, name in enumerate(node.input):
            if name:
                new.input[place] = self._read(name, as_half=place in places)
        makes_floats = any(name in self._floats for name in node.output)
        if places or (makes_floats and not stays and _has_float_type(new)):
            _retype(new)
            self._is_half.update(name for name in node.output if name in self._floats)
            self.converted += 1
        self._writer.keep(new)

    def finished(self) -> GraphParts:
        """The graph, whose outputs stay float32, without its declared types of inner tensors, which no longer hold."""
        outputs = {output.name for output in self._graph.outputs} & self._is_half
        for node in self._writer.nodes:
            for names in (node.input, node.output):
                names[:] = [f"{name}_half" if name in outputs else name for name in names]
        for name in sorted(outputs):
            self._writer.node("Cast", [f"{name}_half"], name, f"{name}_full", to=TensorProto.FLOAT)
        frame = ModelProto()
        frame.CopyFrom(self._graph.frame)
        del frame.graph.value_info[:]
        return self._graph.rewritten(self._writer, frame)

    def _half_places(self, node: NodeProto) -> list[int]:
        """The inputs that become fp16; none where the operator has no fp16, or no floats."""
        if node.domain not in ("", "ai.onnx") or any(True for _ in subgraphs(node)):
            return []
        schema = onnx.defs.get_schema(node.op_type, self._opset)
        allowed = {entry.type_param_str: set(entry.allowed_type_strs) for entry in schema.type_constraints}
        places = []
        for place, name in enumerate(node.input):
            formal = schema.inputs[min(place, len(schema.inputs) - 1)]
            is_float = name in self._floats or self._constants.is_float(name)
            if is_float and _HALF in allowed.get(formal.type_str, {formal.type_str}):
                places.append(place)
        return places

    def _read(self, name: str, *, as_half: bool) -> str:
        """The name of the tensor `name` in the requested precision."""
        if name not in self._floats and not self._constants.is_float(name):
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
        return self._writer.node("Cast", [name], output, to=to)


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
