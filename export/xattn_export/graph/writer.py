"""Writes nodes for one graph: names them, and writes what is the same only once. Knows no attention."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import GraphProto, NodeProto, TensorProto

__all__ = ["ConstantPool", "Dimension", "GraphWriter", "Names"]

Dimension = int | str | None
"""The size of an axis: a number, a symbol that stands for one number throughout a graph, or not known."""


class Names:
    """Names that no tensor and no node of a model has yet."""

    def __init__(self, taken: set[str]) -> None:
        self._taken = taken

    def fresh(self, stem: str) -> str:
        """`stem`, numbered where it is taken."""
        name, number = stem, 1
        while name in self._taken:
            number += 1
            name = f"{stem}_{number}"
        self._taken.add(name)
        return name


class ConstantPool:
    """Initializers of the main graph, which its subgraphs see too: one for each value."""

    def __init__(self, graph: GraphProto, names: Names, stem: str = "attention/constant") -> None:
        self._graph = graph
        self._names = names
        self._stem = stem
        self._written: dict[tuple[object, ...], str] = {}

    def number(self, value: float, element: int) -> str:
        """A scalar of the ONNX element type `element`, a floating-point one."""
        return self._add(onnx.helper.make_tensor("", element, (), [value]))

    def integers(self, values: int | Sequence[int] | NDArray[np.int64]) -> str:
        """An int64 tensor; a scalar of one number."""
        return self._add(onnx.numpy_helper.from_array(np.asarray(values, np.int64)))

    def tensor(self, values: NDArray[Any]) -> str:
        """A tensor of any dtype that numpy and ONNX share; strings are of dtype object."""
        return self._add(onnx.numpy_helper.from_array(values))

    def _add(self, tensor: TensorProto) -> str:
        key = (tensor.data_type, *tensor.dims, tensor.SerializeToString())
        if key not in self._written:
            tensor.name = self._names.fresh(self._stem)
            self._graph.initializer.append(tensor)
            self._written[key] = tensor.name
        return self._written[key]


class GraphWriter:
    """The nodes that are new in one graph, in order.

    nodes: what has been written since it was last emptied.
    stem: what the names of the next nodes begin with.
    """

    def __init__(self, names: Names, constants: ConstantPool) -> None:
        self.nodes: list[NodeProto] = []
        self.stem = "attention"
        self.constants = constants
        self._names = names
        self._written: dict[tuple[object, ...], str] = {}
        self._lengths: dict[str, str] = {}

    def op(self, op_type: str, *inputs: str, **attributes: int | float | str | Sequence[int]) -> str:
        """The output of a new node, or of the node of this graph that already computes it."""
        key = (op_type, inputs, *((field, repr(value)) for field, value in attributes.items()))
        if key not in self._written:
            name = self._names.fresh(f"{self.stem}/{op_type}")
            node = onnx.helper.make_node(op_type, inputs, [name], name)
            node.attribute.extend(onnx.helper.make_attribute(field, value) for field, value in attributes.items())
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
        """Give the tensor written last the name that the model knows it by; what it is called from now on.

        An empty `name` is one that nobody asked for: `tensor` stays as it is.
        """
        if not name:
            return tensor
        if self.nodes and self.nodes[-1].output[0] == tensor:
            self.nodes[-1].output[0] = name
            self._written = {key: name if value == tensor else value for key, value in self._written.items()}
        else:
            node_name = self._names.fresh(f"{self.stem}/Identity")
            self.nodes.append(onnx.helper.make_node("Identity", [tensor], [name], node_name))
        return name
