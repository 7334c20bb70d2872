"""What a bundle or a single graph is made of: operators, domains, opsets, precisions, sizes. Runs nothing."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from xattn_runtime.bundle.folder import open_bundle
from xattn_runtime.bundle.graph_facts import GraphFacts, facts_of
from xattn_runtime.bundle.onnx_header import ModelHeader, read_header
from xattn_runtime.json_reader import unsafe_path_reason

__all__ = ["InspectReport", "inspect_path"]


@dataclass(frozen=True)
class InspectReport:
    """Role (or the name of the file, for a single graph) → facts, and size in bytes with external weights.

    absent: role → why the bundle lacks it, where that needs an explanation.
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
    headers = {role: read_header(file) for role, file in files.items()}
    return InspectReport(
        path,
        {role: facts_of(header) for role, header in headers.items()},
        {role: file.stat().st_size + _external_bytes(headers[role], file.parent) for role, file in files.items()},
        absent,
    )


def _external_bytes(header: ModelHeader, folder: Path) -> int:
    """Size of the weight files beside the graph that it names; one outside its folder counts for nothing."""
    locations = {weight.location for weight in header.bodies[0].weights if weight.location is not None}
    safe = [folder / location for location in locations if unsafe_path_reason(location) is None]
    return sum(file.stat().st_size for file in safe if file.is_file())
