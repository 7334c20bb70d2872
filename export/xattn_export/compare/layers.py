"""Two graphs of one role, fed the same inputs, compared tensor by tensor.

Both give the tensors that they name alike as outputs beside their own: an edit of the graph that any engine can run. So
fused operators are not fused as they would be otherwise; what is compared is what the graphs say.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import ModelProto, TensorProto

from xattn_export.compare.report import Component, LayerError
from xattn_export.graph.conformance import FLOATING, all_initializers
from xattn_export.graph.reading import read_graph
from xattn_runtime.bundle.folder import Bundle
from xattn_runtime.execution.loading import load_graph
from xattn_runtime.execution.session import EngineTensor, SessionSettings, Tensor

__all__ = ["GraphPair", "PairEngine"]

# Errors this small are the order of sums.
_NOISE = 1e-6


@dataclass
class _Sums:
    """Squares of a tensor's values and of its differences, summed over runs."""

    difference: float = 0.0
    size: float = 0.0

    def add(self, first: NDArray[Any], second: NDArray[Any]) -> None:
        with np.errstate(invalid="ignore", over="ignore"):
            one, other = first.astype(np.float64), second.astype(np.float64)
            both = np.isfinite(one) & np.isfinite(other)  # masks hold infinities
            self.difference += float(np.sum((one[both] - other[both]) ** 2))
            self.size += float(np.sum(one[both] ** 2))

    @property
    def relative_rms(self) -> float:
        return float(np.sqrt(self.difference / self.size)) if self.size else 0.0


@dataclass
class GraphPair:
    """The first graph as the runtime runs it, and beside it the second on the very same inputs."""

    role: str
    model: ModelProto
    sessions: tuple[Any, Any]
    names: Sequence[str]
    outputs: Sequence[str]
    runs: int = 0
    note: str | None = None
    sums: dict[str, _Sums] = field(default_factory=dict)

    @classmethod
    def open(
        cls, role: str, bundles: tuple[Bundle, Bundle], settings: tuple[SessionSettings, SessionSettings], folder: Path
    ) -> GraphPair:
        """Load both graphs with what they have in common as outputs; copies of them are put into `folder`."""
        files = [bundle.file(bundle.manifest.graphs[role].file) for bundle in bundles]
        models = [read_graph(file) for file in files]
        computed = [_floating(model) for model in models]
        names = [name for name in dict.fromkeys(computed[0]) if name in set(computed[1])]
        sessions = [
            _session(model, names, file, bundle, setting, folder / f"{role}-{number}")
            for number, (model, file, bundle, setting) in enumerate(zip(models, files, bundles, settings, strict=True))
        ]
        outputs = [value.name for value in models[0].graph.output]
        return cls(role, models[0], (sessions[0], sessions[1]), names, outputs)

    def get_inputs(self) -> Sequence[EngineTensor]:
        """Those of the first graph."""
        return list(self.sessions[0].get_inputs())

    def get_outputs(self) -> Sequence[EngineTensor]:
        """Those of the first graph."""
        return [value for value in self.sessions[0].get_outputs() if value.name in self.outputs]

    def run(self, outputs: Sequence[str], inputs: Mapping[str, Tensor]) -> Sequence[Tensor]:
        """The first graph's outputs, after both have run."""
        requested = [*outputs, *(name for name in self.names if name not in outputs)]
        values = dict(zip(requested, self.sessions[0].run(requested, dict(inputs)), strict=True))
        second_types = {value.name: value.type for value in self.sessions[1].get_inputs()}
        first_types = {value.name: value.type for value in self.sessions[0].get_inputs()}
        if second_types != first_types:
            self.note = "the two take different inputs, so that only answers can be compared"
        elif self.names:
            other = dict(zip(self.names, self.sessions[1].run(list(self.names), dict(inputs)), strict=True))
            self._compare(values, other)
            self.runs += 1
        return [values[name] for name in outputs]

    def component(self, threshold: float) -> Component:
        """Measurements of all runs."""
        operators = {name: node.op_type for node in self.model.graph.node for name in node.output}
        layers = [
            LayerError(name, operators[name], self.sums[name].relative_rms) for name in self.names if name in self.sums
        ]
        if not layers:
            nothing = "no example runs it" if self.names else "no tensor has the same name"
            return Component(self.role, self.runs, None, None, None, (), self.note or nothing)
        parts = next((layer for layer in layers if layer.relative_rms > threshold), None)
        before = [_NOISE, *(layer.relative_rms for layer in layers)]
        jumps = max(zip(layers, before, strict=False), key=lambda pair: pair[0].relative_rms / max(pair[1], _NOISE))[0]
        largest = max((layer.relative_rms for layer in layers if layer.tensor in self.outputs), default=None)
        return Component(self.role, self.runs, largest, parts, jumps if parts else None, tuple(layers))

    def _compare(self, first: Mapping[str, Tensor], second: Mapping[str, Tensor]) -> None:
        for name in self.names:
            one, other = first[name], second[name]
            if one.dtype.kind == other.dtype.kind == "f" and one.shape == other.shape:
                self.sums.setdefault(name, _Sums()).add(one, other)


def _floating(model: ModelProto) -> list[str]:
    """Computed tensors, but for those that are known to hold no floating-point numbers, which are not compared."""
    inferred = onnx.shape_inference.infer_shapes(model).graph
    others = {
        info.name
        for info in (*inferred.value_info, *inferred.output)
        if info.type.tensor_type.elem_type not in (TensorProto.UNDEFINED, *FLOATING)
    }
    return [name for node in model.graph.node for name in node.output if name and name not in others]


@dataclass(frozen=True)
class PairEngine:
    """Runs the pairs of some roles in place of the first bundle's graphs."""

    pairs: Mapping[str, GraphPair]
    name: str = "compare"

    def open(self, path: Path, role: str) -> GraphPair | None:
        """The pair of `role`."""
        return self.pairs.get(role)


def _session(
    model: ModelProto, names: Sequence[str], source: Path, bundle: Bundle, settings: SessionSettings, folder: Path
) -> Any:
    """`model` with `names` as outputs, its weights beside it as they are beside `source`, on the settings' provider."""
    extended = ModelProto()
    extended.CopyFrom(model)
    own = {value.name for value in model.graph.output}
    extended.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names if name not in own)
    folder.mkdir()
    for location in {
        entry.value
        for tensor in all_initializers(model.graph)
        for entry in tensor.external_data
        if entry.key == "location"
    }:
        # No link: one that a kill leaves behind would make readers refuse the bundle's own file.
        shutil.copyfile(source.parent / location, folder / location)
    path = folder / source.name
    path.write_bytes(extended.SerializeToString())
    return load_graph(path, bundle.manifest, settings.requested, settings.threads, log=False).session
