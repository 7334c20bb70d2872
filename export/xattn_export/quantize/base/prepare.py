"""Brings products with a constant into the one form that quantization handles: `MatMul` whose second input is constant.

A fully connected layer may have been exported as `Gemm`, or with a `Transpose` of its weights (a head that shares the
embedding's table). In place, without a change of what is computed.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import GraphProto, ModelProto, NodeProto, TensorProto, helper, numpy_helper

__all__ = ["Constants", "attributes", "constant_values", "prepare_products", "replace_nodes", "write_nodes"]


class Constants:
    """The initializers of a graph, by name; new ones are added, and those that no node reads any more dropped.

    Weights that lie in files of `folder` are read when they are asked for, and stay there.
    """

    def __init__(self, graph: GraphProto, folder: Path | None = None) -> None:
        self._graph = graph
        self._folder = "" if folder is None else str(folder)
        self._tensors: dict[str, TensorProto] = {tensor.name: tensor for tensor in graph.initializer}

    def __contains__(self, name: str) -> bool:
        return name in self._tensors

    def is_float(self, name: str, rank: int) -> bool:
        """Whether `name` is a float32 constant of this rank."""
        tensor = self._tensors.get(name)
        return tensor is not None and tensor.data_type == TensorProto.FLOAT and len(tensor.dims) == rank

    def is_float_of_any_rank(self, name: str) -> bool:
        """Whether `name` is a float32 constant."""
        tensor = self._tensors.get(name)
        return tensor is not None and tensor.data_type == TensorProto.FLOAT

    def is_int8(self, name: str) -> bool:
        """Whether `name` is a constant of signed bytes."""
        return name in self._tensors and self._tensors[name].data_type == TensorProto.INT8

    def elements(self, name: str) -> int:
        """Number of values."""
        return int(np.prod(self._tensors[name].dims, dtype=np.int64))

    def dims(self, name: str) -> tuple[int, ...]:
        """Its shape."""
        return tuple(self._tensors[name].dims)

    def values(self, name: str) -> NDArray[np.float32]:
        """The values of a float32 constant."""
        return self._array(name).astype(np.float32, copy=False)

    def bring_in(self) -> None:
        """Put weights that lie in files into the graph, in place."""
        for name, tensor in self._tensors.items():
            if tensor.data_location == TensorProto.EXTERNAL:
                tensor.CopyFrom(numpy_helper.from_array(self._array(name), name))

    def _array(self, name: str) -> NDArray[Any]:
        return constant_values(self._tensors[name], self._folder)

    def sizes(self, name: str) -> list[int]:
        """The values of an int64 constant."""
        return [int(size) for size in self._array(name)]

    def add(self, name: str, values: NDArray[np.generic]) -> str:
        """A new constant; the name that it got, `name` itself or with a number where that is taken."""
        unique, number = name, 0
        while unique in self._tensors:
            unique, number = f"{name}_{number}", number + 1
        self._tensors[unique] = numpy_helper.from_array(np.asarray(values, order="C"), unique)
        return unique

    def write_back(self) -> None:
        """Put the constants that are read into the graph."""
        read = {name for node in self._graph.node for name in node.input} | {out.name for out in self._graph.output}
        kept = [tensor for name, tensor in self._tensors.items() if name in read]
        del self._graph.initializer[:]
        self._graph.initializer.extend(kept)


def constant_values(tensor: TensorProto, folder: str) -> NDArray[Any]:
    """The values of a constant, which may lie in a file of `folder`, and stay there."""
    if tensor.data_location == TensorProto.EXTERNAL:
        # Reading fills the message in; a copy leaves ours as it is.
        tensor = TensorProto.FromString(tensor.SerializeToString())
    return numpy_helper.to_array(tensor, folder)


def attributes(node: NodeProto) -> dict[str, object]:
    """Attribute name → value."""
    return {attribute.name: helper.get_attribute_value(attribute) for attribute in node.attribute}


def replace_nodes(graph: GraphProto, replacements: dict[int, list[NodeProto]]) -> None:
    """Put, for each index of a node, its replacement in its place."""
    write_nodes(graph, [new for index, node in enumerate(graph.node) for new in replacements.get(index, [node])])


def write_nodes(graph: GraphProto, nodes: list[NodeProto]) -> None:
    """Put `nodes`, which may be the graph's own, in the place of all that are there."""
    copies = [onnx.NodeProto.FromString(node.SerializeToString()) for node in nodes]
    del graph.node[:]
    graph.node.extend(copies)


def prepare_products(model: ModelProto, folder: Path | None = None) -> None:
    """Turn `Gemm` with constant weights into `MatMul` and `Add`, and fold `Transpose` of constants, in place.

    folder: where weights lie that are beside the graph.
    """
    graph = model.graph
    constants = Constants(graph, folder)
    _fold_transposes(graph, constants)
    replacements = {}
    for index, node in enumerate(graph.node):
        if node.op_type == "Gemm" and (new := _gemm_as_matmul(node, constants)):
            replacements[index] = new
    replace_nodes(graph, replacements)
    constants.write_back()


def _fold_transposes(graph: GraphProto, constants: Constants) -> None:
    folded: dict[int, list[NodeProto]] = {}
    renamed: dict[str, str] = {}
    outputs = {output.name for output in graph.output}
    for index, node in enumerate(graph.node):
        if node.op_type == "Transpose" and constants.is_float(node.input[0], 2) and node.output[0] not in outputs:
            values = constants.values(node.input[0])
            values = values if attributes(node).get("perm") == [0, 1] else values.T
            renamed[node.output[0]] = constants.add(f"{node.input[0]}_transposed", values)
            folded[index] = []
    for node in graph.node:
        for position, name in enumerate(node.input):
            node.input[position] = renamed.get(name, name)
    replace_nodes(graph, folded)


def _gemm_as_matmul(node: NodeProto, constants: Constants) -> list[NodeProto] | None:
    """`MatMul` and `Add` for a `Gemm` that is a fully connected layer, else None."""
    options = {"alpha": 1.0, "beta": 1.0, "transA": 0, "transB": 0} | attributes(node)
    if not constants.is_float(node.input[1], 2):
        return None
    if (options["alpha"], options["beta"], options["transA"]) != (1.0, 1.0, 0):
        return None
    weights = node.input[1]
    if options["transB"]:
        weights = constants.add(f"{weights}_transposed", constants.values(weights).T)
    if len(node.input) < 3:
        return [helper.make_node("MatMul", [node.input[0], weights], [node.output[0]], name=node.name)]
    product = f"{node.output[0]}_product"
    return [
        helper.make_node("MatMul", [node.input[0], weights], [product], name=node.name),
        helper.make_node("Add", [product, node.input[2]], [node.output[0]], name=f"{node.name}_bias"),
    ]
