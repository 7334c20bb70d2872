"""Inputs and outputs of a graph as its file declares them: engines differ in what they report."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import onnx

from xattn_export.graph.conformance import all_initializers
from xattn_runtime.errors import BundleError
from xattn_runtime.json_reader import one_line

__all__ = ["DeclaredTensor", "Signature", "read_signature"]


@dataclass(frozen=True)
class DeclaredTensor:
    """Name, dtype in ONNX Runtime's words ("tensor(float)"), and axes: an int where static, else name or None."""

    name: str
    type: str
    shape: Sequence[int | str | None]


@dataclass(frozen=True)
class Signature:
    """Inputs, outputs and the files of the weights outside of the graph, by the names that the graph has for them."""

    inputs: tuple[DeclaredTensor, ...]
    outputs: tuple[DeclaredTensor, ...]
    external: Mapping[str, Path]


def read_signature(path: Path) -> Signature:
    """The signature of the graph in `path`; BundleError where the file is no graph."""
    try:
        model = onnx.load(path, load_external_data=False)
    except Exception as error:  # protobuf's exceptions share no base class
        raise BundleError(
            f"{path}: expected an ONNX graph, found: {one_line(error)}; export the bundle again"
        ) from error
    names = {
        entry.value
        for tensor in all_initializers(model.graph)
        for entry in tensor.external_data
        if entry.key == "location"
    }
    return Signature(
        tuple(_declared(value) for value in model.graph.input),
        tuple(_declared(value) for value in model.graph.output),
        {name: path.parent / name for name in sorted(names)},
    )


def _declared(value: onnx.ValueInfoProto) -> DeclaredTensor:
    tensor = value.type.tensor_type
    axes = tuple(axis.dim_value if axis.HasField("dim_value") else axis.dim_param or None for axis in tensor.shape.dim)
    kind = onnx.TensorProto.DataType.Name(tensor.elem_type).lower()
    return DeclaredTensor(value.name, f"tensor({kind})", axes)
