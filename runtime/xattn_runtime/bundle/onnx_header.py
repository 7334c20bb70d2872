"""Reads what an ONNX file says of itself (opsets, operators, shapes of weights) from its bytes, without package onnx.

An ONNX file is a `ModelProto` in protobuf's wire format
(https://protobuf.dev/programming-guides/encoding/, https://github.com/onnx/onnx/blob/main/onnx/onnx.proto).
Weights are skipped, not read, so that a large file costs no memory. Nothing in the file is trusted: lengths stay within
it, nesting and the number of fields have limits. It knows no operator and judges nothing; `graph_facts.py` does.
"""

from __future__ import annotations

import mmap
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from xattn_runtime.errors import BundleError
from xattn_runtime.json_reader import one_line, show

__all__ = ["GraphBody", "ModelHeader", "NodeHeader", "WeightHeader", "parse_header", "read_header"]

_MOST_NESTED = 32
_MOST_FIELDS = 20_000_000
_MOST_TEXT_BYTES = 4096

_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5

# Numbers of the fields that are read, by message.
_MODEL_IR_VERSION, _MODEL_GRAPH, _MODEL_OPSETS, _MODEL_TRAINING, _MODEL_FUNCTIONS = 1, 7, 8, 20, 25
_GRAPH_NODES, _GRAPH_INITIALIZERS = 1, 5
_NODE_OPERATOR, _NODE_ATTRIBUTES, _NODE_DOMAIN = 4, 5, 7
_ATTRIBUTE_GRAPH, _ATTRIBUTE_GRAPHS, _ATTRIBUTE_TYPE = 6, 11, 20
_TYPE_GRAPH, _TYPE_GRAPHS = 5, 10
_TENSOR_DIMS, _TENSOR_DTYPE, _TENSOR_EXTERNAL, _TENSOR_LOCATION = 1, 2, 13, 14
_EXTERNAL = 1
_FUNCTION_NAME, _FUNCTION_NODES, _FUNCTION_OPSETS, _FUNCTION_DOMAIN = 1, 7, 9, 10


@dataclass(frozen=True)
class NodeHeader:
    """A node: its operator, and the domain as the file writes it (empty for `ai.onnx`)."""

    operator: str
    domain: str


@dataclass(frozen=True)
class WeightHeader:
    """An initializer: its element type as `TensorProto.DataType` numbers it, its shape, its file where it has one."""

    dtype: int
    shape: tuple[int, ...]
    location: str | None = None


@dataclass(frozen=True)
class GraphBody:
    """A graph with all its subgraphs, or a function.

    name: as reports say it. opsets: domain as the file writes it → version. nodes, weights: of all depths.
    """

    name: str
    opsets: tuple[tuple[str, int], ...]
    nodes: tuple[NodeHeader, ...]
    weights: tuple[WeightHeader, ...] = ()


@dataclass(frozen=True)
class ModelHeader:
    """An ONNX file: the main graph first, then functions, then graphs for training."""

    ir_version: int
    opsets: tuple[tuple[str, int], ...]
    bodies: tuple[GraphBody, ...]


def read_header(path: Path) -> ModelHeader:
    """The header of the ONNX file `path`.

    Raises BundleError where it cannot be read, or is no ONNX model with a graph.
    """
    try:
        with path.open("rb") as stream:
            if not path.stat().st_size:
                raise ValueError("an empty file")
            with mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as content, memoryview(content) as view:
                header = parse_header(view)
    except (OSError, ValueError) as error:
        raise BundleError(f"{path}: expected an ONNX model, found: {one_line(error)}; export it again") from error
    if not header.ir_version or not header.opsets or not header.bodies[0].nodes:
        raise BundleError(f"{path}: expected an ONNX model, found a file without a graph; export it again")
    return header


def parse_header(content: bytes | memoryview) -> ModelHeader:
    """The header of a serialized `ModelProto`; ValueError where `content` is none, or is beyond a limit."""
    reader = _Reader(content)
    ir_version, opsets = 0, []
    graphs, functions, trainings = [], [], []
    for number, value in reader.fields((0, len(content)), 0):
        if number == _MODEL_IR_VERSION and isinstance(value, int):
            ir_version = value
        elif isinstance(value, tuple):
            if number == _MODEL_OPSETS:
                opsets.append(reader.opset(value))
            elif number == _MODEL_GRAPH:
                graphs.append(value)
            elif number == _MODEL_FUNCTIONS:
                functions.append(value)
            elif number == _MODEL_TRAINING:
                trainings.append(value)
    imported = tuple(opsets)
    bodies = [reader.graph("the graph", imported, graphs)]
    bodies += [reader.function(each) for each in functions]
    for training in trainings:
        for number, name in ((1, "the initialization"), (2, "the algorithm")):
            parts = [value for key, value in reader.fields(training, 1) if key == number and isinstance(value, tuple)]
            bodies.append(reader.graph(name, imported, parts))
    return ModelHeader(ir_version, imported, tuple(bodies))


_Span = tuple[int, int]


class _Reader:
    """Walks over messages, which are spans of `content`."""

    def __init__(self, content: bytes | memoryview) -> None:
        self._content = content
        self._fields = 0

    def fields(self, span: _Span, depth: int) -> Iterator[tuple[int, int | _Span]]:
        """Number and value of every field: a varint as an int, text, messages and packed numbers as their span."""
        if depth > _MOST_NESTED:
            raise ValueError(f"more than {_MOST_NESTED} messages within each other")
        position, end = span
        while position < end:
            self._fields += 1
            if self._fields > _MOST_FIELDS:
                raise ValueError(f"more than {_MOST_FIELDS} fields")
            key, position = self._varint(position, end)
            number, kind = key >> 3, key & 7
            if not number:
                raise ValueError("a field without a number")
            value: int | _Span
            if kind == _VARINT:
                value, position = self._varint(position, end)
            else:
                if kind == _BYTES:
                    length, position = self._varint(position, end)
                elif kind in (_FIXED32, _FIXED64):
                    length = 4 if kind == _FIXED32 else 8
                else:
                    raise ValueError(f"a field of wire type {kind}")
                if length > end - position:
                    raise ValueError("a field that is longer than what holds it: the file is cut off or altered")
                value, position = (position, position + length), position + length
            yield number, value

    def opset(self, span: _Span) -> tuple[str, int]:
        domain, version = "", 0
        for number, value in self.fields(span, 1):
            if number == 1 and isinstance(value, tuple):
                domain = self._text(value)
            elif number == 2 and isinstance(value, int):
                version = _signed(value)
        return domain, version

    def graph(self, name: str, opsets: tuple[tuple[str, int], ...], spans: list[_Span]) -> GraphBody:
        """The graph that the messages at `spans` make up together, as protobuf merges them."""
        nodes: list[NodeHeader] = []
        weights: list[WeightHeader] = []
        for span in spans:
            self._graph(span, 1, nodes, weights)
        return GraphBody(name, opsets, tuple(nodes), tuple(weights))

    def function(self, span: _Span) -> GraphBody:
        name, domain, opsets = "", "", []
        nodes: list[NodeHeader] = []
        for number, value in self.fields(span, 1):
            if not isinstance(value, tuple):
                continue
            if number == _FUNCTION_NAME:
                name = self._text(value)
            elif number == _FUNCTION_DOMAIN:
                domain = self._text(value)
            elif number == _FUNCTION_OPSETS:
                opsets.append(self.opset(value))
            elif number == _FUNCTION_NODES:
                self._node(value, 2, nodes, [])
        return GraphBody(f"the function {domain or 'ai.onnx'}::{name}", tuple(opsets), tuple(nodes))

    def _graph(self, span: _Span, depth: int, nodes: list[NodeHeader], weights: list[WeightHeader]) -> None:
        own = []
        for number, value in self.fields(span, depth):
            if number == _GRAPH_NODES and isinstance(value, tuple):
                own.append(value)
            elif number == _GRAPH_INITIALIZERS and isinstance(value, tuple):
                weights.append(self._weight(value, depth + 1))
        for node in own:
            self._node(node, depth + 1, nodes, weights)

    def _node(self, span: _Span, depth: int, nodes: list[NodeHeader], weights: list[WeightHeader]) -> None:
        operator, domain, attributes = "", "", []
        for number, value in self.fields(span, depth):
            if isinstance(value, tuple):
                if number == _NODE_OPERATOR:
                    operator = self._text(value)
                elif number == _NODE_DOMAIN:
                    domain = self._text(value)
                elif number == _NODE_ATTRIBUTES:
                    attributes.append(value)
        nodes.append(NodeHeader(operator, domain))
        for attribute in attributes:
            for graph in self._graphs_of(attribute, depth + 1):
                self._graph(graph, depth + 2, nodes, weights)

    def _graphs_of(self, span: _Span, depth: int) -> list[_Span]:
        kind, single, several = 0, [], []
        for number, value in self.fields(span, depth):
            if number == _ATTRIBUTE_TYPE and isinstance(value, int):
                kind = value
            elif isinstance(value, tuple) and number == _ATTRIBUTE_GRAPH:
                single.append(value)
            elif isinstance(value, tuple) and number == _ATTRIBUTE_GRAPHS:
                several.append(value)
        return single if kind == _TYPE_GRAPH else several if kind == _TYPE_GRAPHS else []

    def _weight(self, span: _Span, depth: int) -> WeightHeader:
        dtype, place, entries = 0, 0, []
        shape: list[int] = []
        for number, value in self.fields(span, depth):
            if number == _TENSOR_DIMS:
                shape += [_signed(value)] if isinstance(value, int) else self._packed(value)
            elif number == _TENSOR_DTYPE and isinstance(value, int):
                dtype = value
            elif number == _TENSOR_LOCATION and isinstance(value, int):
                place = value
            elif number == _TENSOR_EXTERNAL and isinstance(value, tuple):
                entries.append(value)
        location = None
        if place == _EXTERNAL:
            texts = [dict(self._texts(entry, depth + 1)) for entry in entries]
            location = next((each.get(2, "") for each in reversed(texts) if each.get(1) == "location"), None)
        return WeightHeader(dtype, tuple(shape), location)

    def _texts(self, span: _Span, depth: int) -> Iterator[tuple[int, str]]:
        return ((number, self._text(value)) for number, value in self.fields(span, depth) if isinstance(value, tuple))

    def _packed(self, span: _Span) -> list[int]:
        position, end = span
        values = []
        while position < end:
            value, position = self._varint(position, end)
            values.append(_signed(value))
        return values

    def _text(self, span: _Span) -> str:
        start, end = span
        if end - start > _MOST_TEXT_BYTES:
            raise ValueError(f"a name of {end - start} bytes")
        content = bytes(self._content[start:end])
        try:
            return content.decode()
        except UnicodeDecodeError as error:
            raise ValueError(f"a name that is no text: {show(content)}") from error

    def _varint(self, position: int, end: int) -> tuple[int, int]:
        """An unsigned number of up to 64 bits, and the position behind it."""
        value = 0
        for shift in range(0, 70, 7):
            if position >= end:
                raise ValueError("a number that ends before it is whole: the file is cut off or altered")
            byte = self._content[position]
            position += 1
            value |= (byte & 0x7F) << shift
            if byte < 0x80:
                return value & 0xFFFF_FFFF_FFFF_FFFF, position
        raise ValueError("a number of more than 64 bits")


def _signed(value: int) -> int:
    """An int64 as protobuf writes it."""
    return value - 2**64 if value >= 2**63 else value
