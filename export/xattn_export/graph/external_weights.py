"""Weights beside the graphs of a bundle: large tensors go to files of their own, each of them once.

ONNX has a limit of 2 GB for a graph with its weights inside, and an engine can map a file beside it into memory rather
than read it. A tensor that several graphs hold lies in the file of the first. It knows files and tensors, and no role.
https://onnx.ai/onnx/repo-docs/ExternalData.html
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

import onnx_ir as ir
from onnx import ModelProto, TensorProto

from xattn_export.graph.conformance import all_initializers

__all__ = ["INSIDE_BYTES", "WeightStore", "has_weights_outside", "weights_file"]

INSIDE_BYTES = 64 * 2**20
"""A graph whose weights are not more keeps them: one file is handier than two, and is read in no time."""

_SMALLEST_OUTSIDE_BYTES = 2**10
_PAGE_BYTES = 4096
# Smaller tensors are read, not mapped.
_SMALLEST_MAPPED_BYTES = 64 * 2**10
_UNMAPPED_ALIGNMENT_BYTES = 64
_LEAST_SHARED = 1e-3

_Place = tuple[str, int, int]


@dataclass(frozen=True)
class WeightStore:
    """The weight files in one folder of graphs. `inside_bytes`: the most that a graph may hold itself."""

    folder: Path
    inside_bytes: int = INSIDE_BYTES
    _places: dict[str, _Place] = field(default_factory=dict)

    def externalize(self, model: ir.Model, file: str, *, shared: bool = False) -> None:
        """Write the large weights of `model` to `file` in the folder, and leave references to them, in place.

        Large tensors begin at multiples of a page, so that they can be mapped. Without weights of a kilobyte there is
        no file.
        shared: another graph will name them too, so that they go out however few they are.
        Raises OSError where it cannot be written.
        """
        values = [value for value in model.graph.initializers.values() if value.const_value is not None]
        tensors = [(value, value.const_value) for value in values if value.const_value is not None]
        if sum(tensor.nbytes for _, tensor in tensors) <= self.inside_bytes and not shared:
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        with (self.folder / file).open("wb") as stream:
            for value, tensor in tensors:
                if tensor.nbytes >= _SMALLEST_OUTSIDE_BYTES:
                    location, offset, length = self._place(stream, file, tensor)
                    value.const_value = ir.ExternalTensor(
                        location,
                        offset,
                        length,
                        tensor.dtype,
                        shape=ir.Shape(tensor.shape.numpy()),
                        name=value.name or "",
                    )
            empty = stream.tell() == 0
        if empty:
            (self.folder / file).unlink()

    def externalized(self, model: ModelProto, file: str, *, shared: bool = False) -> ModelProto:
        """The same of a model in the form in which it is stored."""
        loaded = ir.serde.deserialize_model(model)
        self.externalize(loaded, file, shared=shared)
        return ir.serde.serialize_model(loaded)

    def merge(self, model: ModelProto, other: WeightStore, file: str) -> ModelProto:
        """`model`, whose weights `other` took out into `file`, with its weights in this folder.

        Those that a graph here holds too are named where they lie, and `file` is written without them; unless they are
        a thousandth at most, such as biases that are zero, for which it is not worth it.
        Raises OSError where it cannot be written.
        """
        shared_bytes = sum(self._places[digest][-1] for digest in self._places.keys() & other._places)
        if shared_bytes <= _LEAST_SHARED * sum(length for _, _, length in other._places.values()):
            if other._places:
                self.folder.mkdir(parents=True, exist_ok=True)
                (other.folder / file).rename(self.folder / file)
            self._places.update(other._places)
            return model
        loaded = ir.serde.deserialize_model(model)
        ir.external_data.set_base_dir(loaded.graph, other.folder)
        self.externalize(loaded, file, shared=True)
        return ir.serde.serialize_model(loaded)

    def _place(self, stream: BinaryIO, file: str, tensor: ir.TensorProtocol) -> _Place:
        """Where the bytes of `tensor` lie: where they were put before, or from now on at the end of `stream`."""
        content = tensor.tobytes()
        digest = hashlib.sha256(content).hexdigest()
        if digest not in self._places:
            alignment = _PAGE_BYTES if len(content) >= _SMALLEST_MAPPED_BYTES else _UNMAPPED_ALIGNMENT_BYTES
            stream.write(bytes(-stream.tell() % alignment))
            self._places[digest] = (file, stream.tell(), len(content))
            stream.write(content)
        return self._places[digest]


def weights_file(graph: str) -> str:
    """Where the weights of the graph in the file `graph` lie, if they lie beside it."""
    return f"{graph}.data"


def has_weights_outside(model: ModelProto) -> bool:
    """Whether weights of `model` lie in files beside it."""
    return any(tensor.data_location == TensorProto.EXTERNAL for tensor in all_initializers(model.graph))
