"""The result of quantizing: what became of every graph, its size, and what was lost."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from xattn_runtime.bundle.manifest import Precision

__all__ = ["GraphReport", "QuantizeReport"]


@dataclass(frozen=True)
class GraphReport:
    """What became of a graph: its precision, its layers, its operators, and its size with the weights beside it.

    layers: how many became what, by the names of `xattn_export.quantize.base.passing.COUNTS`.
    """

    precision: Precision
    layers: Mapping[str, int]
    operators: Mapping[str, int]
    bytes_before: int
    bytes_after: int

    def to_dict(self) -> dict[str, Any]:
        """As JSON values, the counts of layers among them."""
        values = asdict(self)
        return {"precision": self.precision, **values.pop("layers"), **values}


@dataclass(frozen=True)
class QuantizeReport:
    """A quantized bundle, its size beside the one it came from, and the loss on the golden cases.

    largest_relative_rms: over the kept cases, against the trained model. relative_rms: what the bundle allows.
    near_ties: golden cases whose text changed as the trained model is unsure of it, and which compare logits alone.
    dropped_cases: other golden cases whose text changed. Both as `image: question: before → after`, and by how much.
    """

    bundle: Path
    mode: str
    bytes_before: int
    bytes_after: int
    graphs: Mapping[str, GraphReport]
    golden_cases: int
    largest_relative_rms: float
    relative_rms: float
    near_ties: tuple[str, ...]
    dropped_cases: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """As JSON values."""
        values = {
            **asdict(self),
            "bundle": str(self.bundle),
            "graphs": {role: graph.to_dict() for role, graph in self.graphs.items()},
            "near_ties": list(self.near_ties),
            "dropped_cases": list(self.dropped_cases),
        }
        return values | {"ratio": self.bytes_after / self.bytes_before}
