"""Calibration: examples go through the whole pipeline, and what passes through each graph is observed.

So a decoder is seen at real decoding, step by step with its cache. The tensors of interest become outputs of the graphs
beside their own; what is kept of them is of a fixed size, so that memory depends on one run, not on the number of
examples.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto, TensorProto, helper

from xattn_export.graph.generator import GENERATOR
from xattn_export.quantize.calibration.observers import Observer
from xattn_export.quantize.passes.half import INFINITY_SUBSTITUTE
from xattn_runtime.bundle.folder import Bundle
from xattn_runtime.errors import UserError
from xattn_runtime.execution.providers import CPU, load_onnxruntime
from xattn_runtime.execution.session import EngineGraph, EngineTensor, SessionSettings, default_threads
from xattn_runtime.loader import load
from xattn_runtime.progress import Progress
from xattn_runtime.tasks import Task, TaskInput

if TYPE_CHECKING:
    from xattn_runtime.preprocess.image import ImageInput

__all__ = [
    "Example",
    "Examples",
    "GraphProbe",
    "SomeExamples",
    "golden_examples",
    "largest_magnitudes",
    "observe",
    "run_example",
]

_Tensors = Mapping[str, NDArray[Any]]
_LARGEST = "_largest"


class Example(Protocol):
    """The input of a task: an image, and a question, prompt or query where it has one."""

    @property
    def image(self) -> ImageInput:
        """In any form that a task reads."""

    @property
    def text(self) -> str | None:
        """The question, query, or prompt to continue."""


class Examples(Protocol):
    """Examples, and what they are called in records."""

    @property
    def name(self) -> str:
        """Such as that of the data set."""

    @property
    def items(self) -> Sequence[Example]:
        """The examples, in order."""


@dataclass(frozen=True)
class _GoldenExample:
    image: Path
    text: str | None


@dataclass(frozen=True)
class SomeExamples:
    """Examples that are at hand."""

    name: str
    items: Sequence[Example]


def golden_examples(bundle: Bundle) -> Examples:
    """The golden inputs of a bundle: few, but every bundle has them."""
    cases = bundle.manifest.golden.cases
    items = [_GoldenExample(bundle.file(case.image), case.input_text) for case in cases]
    return SomeExamples("golden", items)


def run_example(task: Task, example: Example) -> None:
    """One example through the pipeline of `task`. Raises UserError where a text is missing."""
    if example.text is None and task.spec.text_key is not None and task.spec.text_required:
        raise UserError("calibration: expected a question or text with every image, found an image alone")
    task.answer(TaskInput(example.image, example.text))


class GraphProbe:
    """A graph on ONNX Runtime that shows tensors of its own whenever it runs.

    It stands in for the session of a role, so that the whole pipeline runs unchanged.
    """

    def __init__(
        self, model: ModelProto, source: Path, tensors: Iterable[str], show: Callable[[_Tensors], None]
    ) -> None:
        """source: the file that `model` was read from."""
        self._outputs = [output.name for output in model.graph.output]
        inputs = {value.name for value in model.graph.input}
        self._fed = sorted(set(tensors) & inputs)
        self._computed = sorted(set(tensors) - inputs)
        self._show = show
        added = [name for name in self._computed if name not in self._outputs]
        self._session = _session(_with_outputs(model, added), source)

    def get_inputs(self) -> Sequence[EngineTensor]:
        """Those of the graph."""
        return list(self._session.get_inputs())

    def get_outputs(self) -> Sequence[EngineTensor]:
        """Those of the graph, without what is shown."""
        return [output for output in self._session.get_outputs() if output.name in self._outputs]

    def run(self, outputs: Sequence[str], inputs: _Tensors) -> Sequence[NDArray[Any]]:
        """The named outputs for `inputs`, after the tensors of interest were shown."""
        requested = [*outputs, *(name for name in self._computed if name not in outputs)]
        values = dict(zip(requested, self._session.run(requested, dict(inputs)), strict=True))
        self._show({name: inputs[name] for name in self._fed} | {name: values[name] for name in self._computed})
        return [values[name] for name in outputs]


class _WatchingEngine:
    """Runs the graphs that are watched; the others are ONNX Runtime's as ever."""

    def __init__(self, probes: Mapping[str, GraphProbe]) -> None:
        self.name = "calibration"
        self._probes = probes

    def open(self, path: Path, role: str) -> EngineGraph | None:
        """What runs the graph of `role`."""
        return self._probes.get(role)


def observe(
    bundle: Bundle,
    examples: Examples,
    watched: Mapping[str, tuple[ModelProto, Mapping[str, Sequence[Observer]]]],
    progress: Progress,
) -> None:
    """Send `examples` through the pipeline, and show observers what their tensor becomes.

    watched: role → its graph, and tensor → observers.
    Raises UserError where there are no examples, or a value is not finite.
    """

    def show_of(role: str) -> Callable[[_Tensors], None]:
        return lambda tensors: _see(role, tensors, watched[role][1])

    probes = {
        role: GraphProbe(model, _file(bundle, role), observers, show_of(role))
        for role, (model, observers) in watched.items()
    }
    _run(bundle, examples, probes, progress)


def _see(role: str, tensors: _Tensors, observers: Mapping[str, Sequence[Observer]]) -> None:
    for name, values in tensors.items():
        _check_finite(role, name, values)
        for observer in observers[name]:
            observer.see(values)


def largest_magnitudes(
    bundle: Bundle, examples: Examples, graphs: Mapping[str, tuple[ModelProto, Iterable[str]]], progress: Progress
) -> dict[str, dict[str, float]]:
    """Role → tensor → the largest magnitude seen; infinities, which masks hold, are passed over.

    graphs: role → its graph, and the tensors of interest. The maxima are computed in the graph.
    """
    largest: dict[str, dict[str, float]] = {role: {} for role in graphs}

    def show_of(role: str) -> Callable[[_Tensors], None]:
        return lambda maxima: _keep_largest(role, maxima, largest[role])

    probes = {}
    for role, (model, tensors) in graphs.items():
        scanned, names = _with_maxima(model, tensors)
        probes[role] = GraphProbe(scanned, _file(bundle, role), names, show_of(role))
    _run(bundle, examples, probes, progress)
    return largest


def _keep_largest(role: str, maxima: _Tensors, largest: dict[str, float]) -> None:
    for name, value in maxima.items():
        tensor = name.removesuffix(_LARGEST)
        _check_finite(role, tensor, value)
        largest[tensor] = max(largest.get(tensor, 0.0), float(value))


def _file(bundle: Bundle, role: str) -> Path:
    return bundle.file(bundle.manifest.graphs[role].file)


def _run(bundle: Bundle, examples: Examples, probes: Mapping[str, GraphProbe], progress: Progress) -> None:
    """The examples through the pipeline, a token at a time."""
    if not examples.items:
        raise UserError(f"calibration data {examples.name}: expected examples, found none")
    graphs = {role: graph for role, graph in bundle.manifest.graphs.items() if role != GENERATOR}
    settings = SessionSettings(CPU, default_threads(), engine=_WatchingEngine(probes))
    task = load(replace(bundle, manifest=replace(bundle.manifest, graphs=graphs)), settings)
    for number, example in enumerate(examples.items):
        progress(f"calibrating on {examples.name}", number / len(examples.items))
        run_example(task, example)


def _check_finite(role: str, name: str, values: NDArray[Any]) -> None:
    if not np.isfinite(values).all():
        raise UserError(
            f"{role}: {name}: expected finite activations, found NaN or infinity on a calibration example; "
            "the model itself computes them, and cannot be calibrated"
        )


def _with_outputs(model: ModelProto, tensors: Iterable[str]) -> ModelProto:
    probed = ModelProto()
    probed.CopyFrom(model)
    probed.graph.output.extend(helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in tensors)
    return probed


def _with_maxima(model: ModelProto, tensors: Iterable[str]) -> tuple[ModelProto, list[str]]:
    """The graph with the largest finite magnitude of each tensor as an output, and those outputs' names."""
    scanned = ModelProto()
    scanned.CopyFrom(model)
    zero, limit = "scan.zero", "scan.limit"
    scanned.graph.initializer.append(helper.make_tensor(zero, TensorProto.FLOAT, [], [0.0]))
    scanned.graph.initializer.append(helper.make_tensor(limit, TensorProto.FLOAT, [], [INFINITY_SUBSTITUTE]))
    names = []
    for name in tensors:
        size, is_mask, unmasked = (f"{name}_{part}" for part in ("size", "is_mask", "kept"))
        names.append(f"{name}{_LARGEST}")
        scanned.graph.node.extend(
            [
                helper.make_node("Abs", [name], [size]),
                helper.make_node("Greater", [size, limit], [is_mask]),
                helper.make_node("Where", [is_mask, zero, size], [unmasked]),
                helper.make_node("ReduceMax", [unmasked], [names[-1]], keepdims=0),
            ]
        )
    return scanned, names


def _session(model: ModelProto, source: Path) -> Any:
    """`model` on ONNX Runtime, with the weights that lie beside `source`."""
    onnxruntime = load_onnxruntime()
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = default_threads()
    options.log_severity_level = 4
    options.add_session_config_entry("session.force_spinning_stop", "1")
    options.add_session_config_entry("session.model_external_initializers_file_folder_path", os.fspath(source.parent))
    return onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
