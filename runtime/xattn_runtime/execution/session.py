"""One graph of a bundle, ready to run on a provider or another engine, and checked against the contract of its role.

It knows roles, threads and devices; it does not know what the tensors are for. How a graph gets onto a provider is in
`loading.py`.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from xattn_runtime.bundle.contract import TensorContract, layers_of, role_contract
from xattn_runtime.bundle.folder import Bundle
from xattn_runtime.bundle.held_files import HeldFile, on_disk
from xattn_runtime.bundle.manifest import WHOLE_ROLES
from xattn_runtime.errors import BundleError, ProviderError, XattnError
from xattn_runtime.execution.forking import keep_forever, tell_after_fork
from xattn_runtime.execution.loading import LoadedGraph, SessionTuning, load_graph
from xattn_runtime.execution.providers import CPU, Provider, RequestedProvider, load_onnxruntime
from xattn_runtime.json_reader import one_line, show

__all__ = [
    "Engine",
    "EngineGraph",
    "EngineTensor",
    "GraphSession",
    "HeldGraph",
    "SessionSettings",
    "Shape",
    "Tensor",
    "default_threads",
    "hold_graph",
    "open_session",
]

Tensor = NDArray[Any]
Shape = tuple[int | str | None, ...]
_MOST_DEFAULT_THREADS = 4
# What an operator of a smaller graph computes takes less time than handing it to another thread (docs/performance.md).
_SMALLEST_SHARED_BYTES = 8 * 2**20
# What ONNX Runtime raises where not the device is at fault, but the input.
_THE_INPUTS = ("InvalidArgument", "ValueError")
_NO_MEMORY = ("out of memory", "failed to allocate", "cudaerrormemoryallocation")


class EngineTensor(Protocol):
    """An input or output of a graph."""

    @property
    def name(self) -> str:
        """The name."""

    @property
    def type(self) -> str:
        """The dtype in ONNX Runtime's words, such as "tensor(float)"."""

    @property
    def shape(self) -> Sequence[int | str | None]:
        """The axes: an int where static, else a name or None."""


class EngineGraph(Protocol):
    """A graph as an engine has loaded it."""

    def get_inputs(self) -> Sequence[EngineTensor]:
        """The inputs."""

    def get_outputs(self) -> Sequence[EngineTensor]:
        """The outputs."""

    def run(self, outputs: Sequence[str], inputs: Mapping[str, Tensor]) -> Sequence[Tensor]:
        """The named outputs for `inputs`."""


class Engine(Protocol):
    """Something other than this process's ONNX Runtime that runs graphs, such as one made to compare with."""

    @property
    def name(self) -> str:
        """What reports call it."""

    def open(self, path: Path, role: str) -> EngineGraph | None:
        """The graph of `role` in `path`, loaded; None where ONNX Runtime shall run it after all."""


@dataclass(frozen=True)
class SessionSettings:
    """What every session of a bundle shares.

    provider: a row of the table. threads: the most within an operator. fallback: whether the CPU may run what the
    provider refuses. library: the plugin that brings the provider. engine: what runs the graphs in its place. tuning:
    further settings of ONNX Runtime.
    """

    provider: Provider
    threads: int
    fallback: bool = False
    library: Path | None = None
    engine: Engine | None = None
    tuning: SessionTuning = field(default_factory=SessionTuning)

    @property
    def requested(self) -> RequestedProvider:
        """The provider with how it is to be taken."""
        return RequestedProvider(self.provider, self.fallback, self.library)

    @property
    def name(self) -> str:
        """What runs the graphs, as reports say it."""
        if self.engine is not None:
            return self.engine.name
        return f"{self.provider.name},cpu" if self.fallback else self.provider.name

    @property
    def loops(self) -> bool:
        """Whether graphs with a `Loop` can be run."""
        return self.engine is not None or self.provider.requirements.loops


class _RenewableGraph:
    """A loaded graph, loaded again where the device that held it was lost, and in a forked process."""

    def __init__(self, graph: EngineGraph | Any, source: HeldGraph) -> None:
        self.graph, self.source = graph, source
        self.lost = self._is_inherited = False
        self._loading = threading.Lock()
        tell_after_fork(self)

    def ready(self) -> EngineGraph | Any:
        for file in self.source.weights:  # which ONNX Runtime reads while it runs
            file.check_now_and_then()
        if self.lost:
            with self._loading:
                if self.lost:
                    self._check_device()
                    self.graph = self.source.load().session
                    self.lost = False
        return self.graph

    def after_fork(self) -> None:
        """See `Inherited`: the threads of the graph are not here, and one of the parent's may hold the lock."""
        keep_forever(self.graph)
        self.lost = self._is_inherited = True
        self._loading = threading.Lock()

    def _check_device(self) -> None:
        provider = self.source.settings.provider
        if self._is_inherited and self.source.settings.engine is None and provider.device != CPU.device:
            raise ProviderError(
                f"provider {provider.name}: expected the process that loaded {self.source.path}, found one that was "
                "forked from it and cannot use its device; load the bundle in each process instead, or start processes "
                "by the method 'spawn'"
            )


@dataclass(frozen=True)
class GraphSession:
    """A graph ready to run. `input_shapes` and `output_shapes` hold an int for a static axis, else its name or None.

    dtypes: of inputs and outputs, in ONNX Runtime's words. placement: nodes on each provider, where the graph is not
    wholly on the CPU. memory: ONNX Runtime's name of the device memory in which tensors can stay from run to run, None
    for this computer's own.
    """

    role: str
    path: Path
    input_shapes: Mapping[str, Shape]
    output_shapes: Mapping[str, Shape]
    dtypes: Mapping[str, str]
    settings: SessionSettings
    _loaded: _RenewableGraph = field(repr=False)
    placement: Mapping[str, int] | None = None

    @property
    def memory(self) -> str | None:
        """See the class."""
        return self.settings.provider.memory if self.settings.engine is None else None

    def layers(self, series: str) -> int:
        """Layers of keys and values of `series`, such as `cross` or `past`, among the graph's inputs and outputs."""
        return layers_of(series, (*self.input_shapes, *self.output_shapes))

    def run(self, outputs: Sequence[str], inputs: Mapping[str, Tensor], keep: Collection[str] = ()) -> list[Tensor]:
        """The named outputs for `inputs`.

        keep: outputs that go straight into a later run. Where the graph computes on a device with a memory of its own,
        they stay there, as ONNX Runtime's OrtValue, which `inputs` may hold too.
        Raises BundleError where the graph fails on these inputs, ProviderError where the device did: then the next call
        loads the graph again.
        """
        graph = self._loaded.ready()
        try:
            if self.memory is None or not (keep or any(not isinstance(value, np.ndarray) for value in inputs.values())):
                return list(graph.run(list(outputs), dict(inputs)))
            return _run_bound(graph, self.memory, outputs, inputs, keep)
        except XattnError:  # an engine's own, which says what is wrong
            raise
        except Exception as error:  # ONNX Runtime's exceptions share no base class
            on_device = self.settings.engine is None and self.settings.provider.device != "CPU"
            if on_device and type(error).__name__ not in _THE_INPUTS:
                self._loaded.lost = True
                raise ProviderError(_device_failure(self.path, self.settings.provider, error)) from error
            raise BundleError(f"{self.path}: the graph failed while it ran: {one_line(error)}") from error

    def on_device(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """`tensors` copied into the device's memory for many runs to come; as they are where it has none."""
        if self.memory is None:
            return dict(tensors)
        make = load_onnxruntime().OrtValue.ortvalue_from_numpy
        return {
            name: make(value, self.memory, 0) if isinstance(value, np.ndarray) else value
            for name, value in tensors.items()
        }


def default_threads() -> int:
    """Threads within an operator: the cores this process may use, at most 4, since a device has other work to do."""
    try:
        cores = len(os.sched_getaffinity(0))
    except AttributeError:  # only Linux has it
        cores = os.cpu_count() or 1
    return min(cores, _MOST_DEFAULT_THREADS)


@dataclass(frozen=True)
class HeldGraph:
    """The files of a role's graph, open, so that it can be loaded at any later time as it was in the bundle.

    path: of the graph. weights: the files that the graph may have its weights in. optimized: those of the graph that
    its tuning names in its place.
    """

    bundle: Bundle
    role: str
    settings: SessionSettings
    path: Path
    graph: HeldFile
    weights: tuple[HeldFile, ...]
    optimized: tuple[HeldFile, ...]

    def load(self, *, log: bool = False) -> LoadedGraph:
        """The graph on the provider asked for; raises as `open_session` does."""
        threads = 1 if _is_small(self.bundle, self.role) else self.settings.threads
        with on_disk((self.graph, *self.weights)) as path:
            graph = None if self.settings.engine is None else self.settings.engine.open(path, self.role)
            if graph is not None:
                return LoadedGraph(graph, None)
            manifest, requested = self.bundle.manifest, self.settings.requested
            return load_graph(path, manifest, requested, threads, self._tuning(), log=log)

    def _tuning(self) -> SessionTuning:
        tuning = self.settings.tuning.of(self.role)
        is_kept = self.optimized and all(file.is_in_place() for file in self.optimized)
        return tuning if is_kept else replace(tuning, optimized=None)

    def open(self) -> GraphSession:
        """The graph, ready to run; raises as `open_session` does."""
        loaded = self.load(log=True)
        inputs = {tensor.name: tensor for tensor in loaded.session.get_inputs()}
        outputs = {tensor.name: tensor for tensor in loaded.session.get_outputs()}
        contract = role_contract(self.role, inputs, outputs)
        _check_tensors(self.path, self.role, "input", inputs, contract.inputs)
        _check_tensors(self.path, self.role, "output", outputs, contract.outputs)
        return GraphSession(
            role=self.role,
            path=self.path,
            input_shapes={name: tuple(tensor.shape) for name, tensor in inputs.items()},
            output_shapes={name: tuple(tensor.shape) for name, tensor in outputs.items()},
            dtypes={name: tensor.type for name, tensor in (*inputs.items(), *outputs.items())},
            settings=self.settings,
            _loaded=_RenewableGraph(loaded.session, self),
            placement=loaded.placement,
        )


def hold_graph(bundle: Bundle, role: str, settings: SessionSettings) -> HeldGraph:
    """The graph of `role`, to be opened later; BundleError where a file of it has changed since `bundle` was opened."""
    manifest = bundle.manifest
    file = manifest.graphs[role].file
    graphs, folder = {graph.file for graph in manifest.graphs.values()}, PurePosixPath(file).parent
    beside = (path for path in manifest.files if PurePosixPath(path).parent == folder and path not in graphs)
    optimized = settings.tuning.of(role).optimized
    candidates = () if optimized is None else (optimized, optimized.with_name(f"{optimized.name}.data"))
    return HeldGraph(
        bundle=bundle,
        role=role,
        settings=settings,
        path=bundle.root / file,
        graph=bundle.hold(file),
        weights=tuple(bundle.hold(path) for path in beside),
        optimized=tuple(HeldFile(path) for path in candidates if path.is_file()),
    )


def open_session(bundle: Bundle, role: str, settings: SessionSettings) -> GraphSession:
    """Load the graph of `role` on exactly the provider asked for.

    Raises BundleError where the file is no graph or not one of this role, ProviderError where the provider refuses it
    or ONNX Runtime would quietly take another.
    """
    return hold_graph(bundle, role, settings).open()


def _run_bound(
    graph: Any, memory: str, outputs: Sequence[str], inputs: Mapping[str, Tensor], keep: Collection[str]
) -> list[Tensor]:
    """A run whose inputs may lie in the device's memory, and that leaves the outputs `keep` there."""
    binding = graph.io_binding()
    for name, value in inputs.items():
        if isinstance(value, np.ndarray):
            binding.bind_cpu_input(name, value)
        else:
            binding.bind_ortvalue_input(name, value)
    for name in outputs:
        binding.bind_output(name, memory if name in keep else "cpu")
    graph.run_with_iobinding(binding)
    return [
        value if name in keep else value.numpy() for name, value in zip(outputs, binding.get_outputs(), strict=True)
    ]


def _device_failure(path: Path, provider: Provider, error: Exception) -> str:
    text = one_line(error)
    if any(words in text.lower() for words in _NO_MEMORY):
        return (
            f"provider {provider.name}: expected enough memory on the {provider.device} to run {path}, found: "
            f"{text[-300:]}; close other programs, ask for fewer beams or images at once, or use --provider cpu"
        )
    return (
        f"provider {provider.name}: expected the {provider.device} to run {path}, found that it failed: {text[-300:]}; "
        "the next call loads the graph again; if that fails too, see `xattn-edge providers`, or use --provider cpu"
    )


def _is_small(bundle: Bundle, role: str) -> bool:
    """Whether the graph takes no images and has few weights: one thread runs it faster than several."""
    if role == "image_encoder" or role in WHOLE_ROLES:
        return False
    files, graphs = bundle.manifest.files, bundle.manifest.graphs
    # A generator has its weights in common with the decoder.
    producers = (role, "decoder") if role == "generator" else (role,)
    holders = {graphs[role].file, *(f"{graphs[producer].file}.data" for producer in producers)}
    size = sum(entry.bytes for path, entry in files.items() if path in holders)
    return size < _SMALLEST_SHARED_BYTES


def _check_tensors(
    path: Path, role: str, kind: str, tensors: Mapping[str, Any], expected: Mapping[str, TensorContract]
) -> None:
    for name, tensor in expected.items():
        if name not in tensors:
            raise BundleError(f"{path}: expected the {kind} {name} of role {role}, found none; export it again")
        dtype, rank = tensors[name].type, len(tensors[name].shape)
        if dtype not in (tensor.dtype, *tensor.quantized) or rank != tensor.rank:
            raise BundleError(
                f"{path}: {kind} {name}: expected {tensor.dtype} of rank {tensor.rank}, found {dtype} of rank {rank}; "
                "export it again"
            )
    for name in tensors:
        if name not in expected:
            raise BundleError(f"{path}: expected no {kind} {show(name)} of role {role}, found one; export it again")
