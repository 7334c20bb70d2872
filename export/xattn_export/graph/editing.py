"""The parts for editing ONNX graphs: names that are free, constants, a writer of nodes, and a graph taken apart.

A graph in parts is never changed: a rewriting reads one, writes nodes and constants, and puts them together anew.
Weights are shared between the two, so that this costs no memory. It knows no attention and no quantization.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from google.protobuf.message import Message  # type: ignore[import-untyped]
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto, TensorProto, ValueInfoProto, helper, numpy_helper

from xattn_export.graph.conformance import all_nodes
from xattn_export.graph.stored_weights import WeightFiles, is_outside, tensor_values

__all__ = [
    "Constants",
    "Dimension",
    "GraphParts",
    "GraphWriter",
    "Names",
    "Transposed",
    "attributes",
    "copy_fields",
    "graph_parts",
    "is_large",
    "with_inputs",
]

Dimension = int | str | None
"""The size of an axis: a number, a symbol that stands for one number throughout a graph, or not known."""

# No tensor of a shape, of axes or of pads is larger: a larger one plays no part in what types and axes follow.
_LARGEST_LOOKED_AT = 1024


class Names:
    """Names that no tensor and no node of a model has yet."""

    def __init__(self, taken: Iterable[str] = ()) -> None:
        self._taken = set(taken)

    def fresh(self, stem: str) -> str:
        """`stem`, numbered where it is taken."""
        name, number = stem, 1
        while name in self._taken:
            number += 1
            name = f"{stem}_{number}"
        self._taken.add(name)
        return name


@dataclass(frozen=True)
class Transposed:
    """A constant that is the transpose of a matrix, and is computed on every access."""

    matrix: TensorProto

    @property
    def data_type(self) -> int:
        """The ONNX element type."""
        return self.matrix.data_type

    @property
    def dims(self) -> tuple[int, ...]:
        """Its shape."""
        return tuple(self.matrix.dims)[::-1]


Stored = TensorProto | Transposed


class Constants:
    """The initializers of a graph, by name, and those that are added to them.

    tensors, files: what there is, and the files that some of it lies in. names, stem: for constants without a name of
    their own, of which there is one for each value.
    """

    def __init__(
        self,
        tensors: Mapping[str, Stored] | None = None,
        files: WeightFiles | None = None,
        *,
        names: Names | None = None,
        stem: str = "constant",
    ) -> None:
        self.tensors: dict[str, Stored] = dict(tensors or {})
        self._files = files or {}
        self._names = names or Names(self.tensors)
        self._stem = stem
        self._written: dict[tuple[object, ...], str] = {}

    def __contains__(self, name: str) -> bool:
        return name in self.tensors

    def is_float(self, name: str, rank: int | None = None) -> bool:
        """Whether `name` is a float32 constant, and of this rank."""
        tensor = self.tensors.get(name)
        is_one = tensor is not None and tensor.data_type == TensorProto.FLOAT
        return is_one and (rank is None or len(self.dims(name)) == rank)

    def is_int8(self, name: str) -> bool:
        """Whether `name` is a constant of signed bytes."""
        return name in self.tensors and self.tensors[name].data_type == TensorProto.INT8

    def elements(self, name: str) -> int:
        """Number of values."""
        return math.prod(self.dims(name))

    def dims(self, name: str) -> tuple[int, ...]:
        """Its shape."""
        return tuple(self.tensors[name].dims)

    def values(self, name: str) -> NDArray[np.float32]:
        """The values of a float32 constant."""
        return _values(self.tensors[name], self._files).astype(np.float32, copy=False)

    def sizes(self, name: str) -> list[int]:
        """The values of an int64 constant."""
        return [int(size) for size in _values(self.tensors[name], self._files)]

    def add(self, name: str, values: NDArray[np.generic]) -> str:
        """A new constant; the name that it got, `name` itself or with a number where that is taken."""
        unique = self._unique(name)
        self.tensors[unique] = numpy_helper.from_array(np.asarray(values, order="C"), unique)
        return unique

    def alias(self, name: str, constant: str, *, transposed: bool = False) -> str:
        """A new constant that is the matrix `constant`, or its transpose; the name that it got."""
        stored, unique = self.tensors[constant], self._unique(name)
        if transposed:
            stored = stored.matrix if isinstance(stored, Transposed) else Transposed(stored)
        self.tensors[unique] = stored
        return unique

    def put(self, tensor: TensorProto) -> None:
        """A constant of any type, under its own name."""
        self.tensors[tensor.name] = tensor

    def protos(self) -> list[TensorProto]:
        """All of them as ONNX has them, in order; weights in files are left there."""
        return [_proto(name, tensor, self._files) for name, tensor in self.tensors.items()]

    def number(self, value: float, element: int) -> str:
        """A scalar of the ONNX element type `element`, a floating-point one."""
        return self._unnamed(helper.make_tensor("", element, (), [value]))

    def integers(self, values: int | Sequence[int] | NDArray[np.int64]) -> str:
        """An int64 tensor; a scalar of one number."""
        return self._unnamed(numpy_helper.from_array(np.asarray(values, np.int64)))

    def tensor(self, values: NDArray[Any]) -> str:
        """A tensor of any dtype that numpy and ONNX share; strings are of dtype object."""
        return self._unnamed(numpy_helper.from_array(values))

    def _unique(self, name: str) -> str:
        unique, number = name, 0
        while unique in self.tensors:
            unique, number = f"{name}_{number}", number + 1
        return unique

    def _unnamed(self, tensor: TensorProto) -> str:
        key = (tensor.data_type, *tensor.dims, tensor.SerializeToString())
        if key not in self._written:
            tensor.name = self._names.fresh(self._stem)
            self.tensors[tensor.name] = tensor
            self._written[key] = tensor.name
        return self._written[key]


class GraphWriter:
    """The nodes of one graph that is being written, in order.

    nodes: what has been written since it was last emptied.
    stem: what the names of the next nodes without a name of their own begin with.
    """

    def __init__(self, constants: Constants, names: Names | None = None, stem: str = "") -> None:
        self.nodes: list[NodeProto] = []
        self.stem = stem
        self.constants = constants
        self._names = names or Names()
        self._written: dict[tuple[object, ...], str] = {}
        self._lengths: dict[str, str] = {}

    def keep(self, node: NodeProto) -> None:
        """Write a node that there is already."""
        self.nodes.append(node)

    def node(self, op_type: str, inputs: Sequence[str], output: str, name: str | None = None, **options: Any) -> str:
        """The output of a new node, which is called like it, or `name`."""
        self.nodes.append(helper.make_node(op_type, inputs, [output], name=output if name is None else name, **options))
        return output

    def op(self, op_type: str, *inputs: str, **attributes: int | float | str | Sequence[int]) -> str:
        """The output of a new node, or of the node of this graph that already computes it."""
        key = (op_type, inputs, *((field, repr(value)) for field, value in attributes.items()))
        if key not in self._written:
            name = self._names.fresh(f"{self.stem}/{op_type}")
            node = helper.make_node(op_type, inputs, [name], name)
            node.attribute.extend(helper.make_attribute(field, value) for field, value in attributes.items())
            self.nodes.append(node)
            self._written[key] = name
        return self._written[key]

    def length(self, tensor: str, axis: int, size: Dimension) -> str:
        """int64 `[1]`: `size` of `axis` of `tensor`, read at run time where it is not a number."""
        if isinstance(size, int):
            return self.constants.integers([size])
        if size in self._lengths:
            return self._lengths[size]
        end = {} if axis == -1 else {"end": axis + 1}
        name = self.op("Shape", tensor, start=axis, **end)
        if size is not None:
            self._lengths[size] = name
        return name

    def publish(self, tensor: str, name: str) -> str:
        """Rename the tensor written last to its name in the model; returns its new name.

        An empty `name` is an output that nothing uses: `tensor` stays as it is.
        """
        if not name:
            return tensor
        if self.nodes and self.nodes[-1].output[0] == tensor:
            self.nodes[-1].output[0] = name
            self._written = {key: name if value == tensor else value for key, value in self._written.items()}
        else:
            node_name = self._names.fresh(f"{self.stem}/Identity")
            self.nodes.append(helper.make_node("Identity", [tensor], [name], node_name))
        return name


@dataclass(frozen=True)
class GraphParts:
    """A model taken apart.

    frame: all of it but the nodes and initializers of its main graph. tensors: the initializers by name, in order.
    files: those that weights lie in. Nobody changes any of them.
    """

    frame: ModelProto
    nodes: tuple[NodeProto, ...]
    tensors: Mapping[str, Stored]
    files: WeightFiles = field(default_factory=dict)

    @property
    def inputs(self) -> Sequence[ValueInfoProto]:
        """Of the graph."""
        return tuple(self.frame.graph.input)

    @property
    def outputs(self) -> Sequence[ValueInfoProto]:
        """Of the graph."""
        return tuple(self.frame.graph.output)

    def constants(self) -> Constants:
        """The initializers, to read and to add to."""
        return Constants(self.tensors, self.files)

    def rewritten(self, writer: GraphWriter, frame: ModelProto | None = None) -> GraphParts:
        """The same graph with what `writer` wrote in place of its nodes, and those constants that they read."""
        frame = frame or self.frame
        read = {name for node in all_nodes(writer.nodes) for name in node.input}
        read |= {output.name for output in frame.graph.output}
        tensors = {name: tensor for name, tensor in writer.constants.tensors.items() if name in read}
        return replace(self, frame=frame, nodes=tuple(writer.nodes), tensors=tensors)

    def outline(self) -> ModelProto:
        """A model for inference of types and shapes: large weights have both, and no content."""
        model = ModelProto()
        model.CopyFrom(self.frame)
        model.graph.node.extend(self.nodes)
        for name, tensor in self.tensors.items():
            if isinstance(tensor, Transposed) or is_large(tensor):
                model.graph.initializer.add(name=name, data_type=tensor.data_type, dims=tensor.dims)
            else:
                model.graph.initializer.append(tensor)
        return model

    def model(self, *, weights_inside: bool = True) -> ModelProto:
        """The whole model. weights_inside: also those that lie in files, rather than where they are."""
        model = ModelProto()
        model.CopyFrom(self.frame)
        model.graph.node.extend(self.nodes)
        for name, tensor in self.tensors.items():
            proto = _proto(name, tensor, self.files)
            if weights_inside and is_outside(proto):
                proto = numpy_helper.from_array(_values(tensor, self.files), name)
            model.graph.initializer.append(proto)
        return model


def graph_parts(model: ModelProto, files: WeightFiles | None = None) -> GraphParts:
    """`model` taken apart; its weights are not copied. files: those that weights lie in, by `map_weights`."""
    frame = ModelProto()
    copy_fields(model, frame, leave_out=("graph",))
    copy_fields(model.graph, frame.graph, leave_out=("node", "initializer"))
    tensors = {tensor.name: tensor for tensor in model.graph.initializer}
    return GraphParts(frame, tuple(model.graph.node), tensors, files or {})


def attributes(node: NodeProto) -> dict[str, object]:
    """Attribute name → value."""
    return {attribute.name: helper.get_attribute_value(attribute) for attribute in node.attribute}


def with_inputs(node: NodeProto, inputs: Iterable[str]) -> NodeProto:
    """A copy of `node` that reads `inputs`."""
    new = NodeProto()
    new.CopyFrom(node)
    new.input[:] = inputs
    return new


def is_large(tensor: TensorProto) -> bool:
    """Whether `tensor` is a weight, of which types and axes of other tensors never depend."""
    return int(math.prod(tensor.dims)) > _LARGEST_LOOKED_AT


def copy_fields(source: Message, target: Message, leave_out: Sequence[str]) -> None:
    """Copy the fields of `source` to `target`, a message of the same kind, but for the fields `leave_out`."""
    for descriptor, value in source.ListFields():
        if descriptor.name in leave_out:
            continue
        if isinstance(value, Message):
            getattr(target, descriptor.name).CopyFrom(value)
        elif hasattr(value, "extend"):
            getattr(target, descriptor.name).extend(value)
        else:
            setattr(target, descriptor.name, value)


def _proto(name: str, tensor: Stored, files: WeightFiles) -> TensorProto:
    """The constant `name` as ONNX has it: `tensor` itself where that is it."""
    if isinstance(tensor, Transposed):
        return numpy_helper.from_array(_values(tensor, files), name)
    if tensor.name == name:
        return tensor
    renamed = TensorProto()
    renamed.CopyFrom(tensor)
    renamed.name = name
    return renamed


def _values(tensor: Stored, files: WeightFiles) -> NDArray[Any]:
    if isinstance(tensor, Transposed):
        return np.ascontiguousarray(tensor_values(tensor.matrix, files).T)
    return tensor_values(tensor, files)
