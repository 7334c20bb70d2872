"""What a bundle or a single graph is made of: operators, domains, opsets, precisions, sizes. Runs nothing."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]
from onnx import ModelProto, TensorProto

from xattn_export.graph.conformance import GraphFacts, all_initializers, examine
from xattn_runtime.bundle.folder import open_bundle
from xattn_runtime.errors import BundleError
from xattn_runtime.json_reader import one_line, unsafe_path_reason

__all__ = ["InspectReport", "inspect_path", "read_graph"]


@dataclass(frozen=True)
class InspectReport:
    """Role (or the name of the file, for a single graph) → facts, and size in bytes with external weights.

    absent: role → why the bundle does not have it, where somebody may ask.
    """

    path: Path
    graphs: Mapping[str, GraphFacts]
    bytes: Mapping[str, int]
    absent: Mapping[str, str]

    @property
    def standard(self) -> bool:
        """Whether every graph holds standard operators only."""
        return all(facts.standard for facts in self.graphs.values())

    def to_dict(self) -> dict[str, Any]:
        """As JSON values."""
        return {
            "standard": self.standard,
            "graphs": {role: {**facts.to_dict(), "bytes": self.bytes[role]} for role, facts in self.graphs.items()},
            "absent": dict(self.absent),
        }


def inspect_path(path: Path) -> InspectReport:
    """Inspect a bundle, whose hashes are checked first, or one ONNX file.

    Raises:
        BundleError: there is nothing, or it is damaged.
    """
    absent: Mapping[str, str] = {}
    if path.is_file():
        files = {path.stem: path}
    else:
        bundle = open_bundle(path)
        files = {role: bundle.file(graph.file) for role, graph in bundle.manifest.graphs.items()}
        absent = bundle.manifest.absent or {}
    graphs = {role: read_graph(file) for role, file in files.items()}
    return InspectReport(
        path,
        {role: examine(graph) for role, graph in graphs.items()},
        {role: file.stat().st_size + _external_bytes(graphs[role], file.parent) for role, file in files.items()},
        absent,
    )


def read_graph(path: Path) -> ModelProto:
    """The ONNX model in `path`; weights beside it are left where they are.

    Raises:
        BundleError: it cannot be read, or is no ONNX model.
    """
    try:
        model = onnx.load_model(path, format="protobuf", load_external_data=False)
    except (DecodeError, OSError, ValueError) as error:
        raise BundleError(f"{path}: expected an ONNX model, found: {one_line(error)}; export it again") from error
    if not model.ir_version or not model.opset_import or not model.graph.node:
        raise BundleError(f"{path}: expected an ONNX model, found a file without a graph; export it again")
    return model


def _external_bytes(model: ModelProto, folder: Path) -> int:
    """Size of the weight files beside the graph that it names; one outside its folder counts for nothing."""
    locations = {
        entry.value
        for tensor in all_initializers(model.graph)
        if tensor.data_location == TensorProto.EXTERNAL
        for entry in tensor.external_data
        if entry.key == "location" and unsafe_path_reason(entry.value) is None
    }
    return sum((folder / location).stat().st_size for location in locations if (folder / location).is_file())
