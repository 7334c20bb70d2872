"""One graph of a bundle, loaded by ONNX Runtime and checked against the contract of its role.

It knows roles, providers and threads; it does not know what the tensors are for.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NoReturn

from numpy.typing import NDArray

from xattn_runtime._reading import one_line, show
from xattn_runtime.bundle import Bundle
from xattn_runtime.contract import TensorContract, layers_of, role_contract
from xattn_runtime.errors import BundleError, ProviderError
from xattn_runtime.processor import sums_int8_exactly
from xattn_runtime.providers import Provider, load_onnxruntime

__all__ = ["GraphSession", "SessionSettings", "Shape", "Tensor", "default_threads", "open_session"]

Tensor = NDArray[Any]
Shape = tuple[int | str | None, ...]
_MOST_DEFAULT_THREADS = 4
# What an operator of a smaller graph computes takes less time than handing it to another thread (docs/performance.md).
_SMALLEST_SHARED_BYTES = 8 * 2**20
_SEVERITY_FATAL = 4
# Keeps int8 products exact on every x86 processor, at half the speed on those that are exact without it.
_WIDE_SUMS = "session.x64quantprecision"


@dataclass(frozen=True)
class SessionSettings:
    """What every session of a bundle shares: the provider and the most threads within an operator."""

    provider: Provider
    threads: int


@dataclass(frozen=True)
class GraphSession:
    """A graph ready to run. `input_shapes` and `output_shapes` hold an int for a static axis, else its name or None."""

    role: str
    path: Path
    input_shapes: Mapping[str, Shape]
    output_shapes: Mapping[str, Shape]
    _session: Any = field(repr=False)

    def layers(self, series: str) -> int:
        """How many layers of keys and values of `series`, such as `cross` or `past`, the graph takes or gives."""
        return layers_of(series, (*self.input_shapes, *self.output_shapes))

    def run(self, outputs: Sequence[str], inputs: Mapping[str, Tensor]) -> list[Tensor]:
        """The named outputs for `inputs`; BundleError where the graph fails on them."""
        try:
            return list(self._session.run(list(outputs), dict(inputs)))
        except Exception as error:  # ONNX Runtime's exceptions share no base class
            raise BundleError(f"{self.path}: the graph failed while it ran: {one_line(error)}") from error


def default_threads() -> int:
    """Threads within an operator: the cores this process may use, at most 4, since a device has other work to do."""
    try:
        cores = len(os.sched_getaffinity(0))
    except AttributeError:  # only Linux has it
        cores = os.cpu_count() or 1
    return min(cores, _MOST_DEFAULT_THREADS)


def open_session(bundle: Bundle, role: str, settings: SessionSettings) -> GraphSession:
    """Load the graph of `role` on exactly the provider asked for.

    Raises BundleError where the file is no graph or not one of this role, ProviderError where the provider refuses it
    or ONNX Runtime would quietly take another.
    """
    path = bundle.file(bundle.manifest.graphs[role].file)
    settings = replace(settings, threads=1) if _is_small(bundle, role) else settings
    session = _create(path, bundle.manifest.session_options or {}, settings)
    inputs = {tensor.name: tensor for tensor in session.get_inputs()}
    outputs = {tensor.name: tensor for tensor in session.get_outputs()}
    contract = role_contract(role, inputs, outputs)
    _check_tensors(path, role, "input", inputs, contract.inputs)
    _check_tensors(path, role, "output", outputs, contract.outputs)
    return GraphSession(
        role=role,
        path=path,
        input_shapes={name: tuple(tensor.shape) for name, tensor in inputs.items()},
        output_shapes={name: tuple(tensor.shape) for name, tensor in outputs.items()},
        _session=session,
    )


def _is_small(bundle: Bundle, role: str) -> bool:
    """Whether the graph takes text and has few weights: one thread runs it faster than several."""
    files, graphs = bundle.manifest.files, bundle.manifest.graphs
    # A generator has its weights in common with the decoder.
    holders = {graphs[role].file, f"{graphs['decoder' if role == 'generator' else role].file}.data"}
    size = sum(entry.bytes for path, entry in files.items() if path in holders)
    return role != "image_encoder" and size < _SMALLEST_SHARED_BYTES


def _create(path: Path, entries: Mapping[str, str], settings: SessionSettings) -> Any:
    onnxruntime = load_onnxruntime()
    provider = settings.provider
    options = _options(onnxruntime, entries, settings)
    try:
        session = onnxruntime.InferenceSession(
            os.fspath(path),
            sess_options=options,
            providers=[(provider.onnxruntime_name, dict(provider.options))],
            enable_fallback=0,
        )
    except Exception as error:  # ONNX Runtime's exceptions share no base class
        _not_loaded(path, provider, error)
    if provider.onnxruntime_name not in session.get_providers():
        raise ProviderError(
            f"provider {provider.name}: expected {provider.onnxruntime_name} to take {path}, found "
            f"{', '.join(session.get_providers())}; check the driver, or use --provider cpu"
        )
    return session


def _options(onnxruntime: Any, entries: Mapping[str, str], settings: SessionSettings) -> Any:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = settings.threads
    options.inter_op_num_threads = 1
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
    # What goes wrong comes back as an exception; nothing may be printed besides.
    options.log_severity_level = _SEVERITY_FATAL
    # Several sessions share this process: threads that spin after a run take the cores from the next session.
    entries = {**entries, "session.force_spinning_stop": "1"}
    if sums_int8_exactly():
        entries.pop(_WIDE_SUMS, None)
    if settings.provider.name != "cpu":
        entries["session.disable_cpu_ep_fallback"] = "1"
    for key, value in entries.items():
        options.add_session_config_entry(key, value)
    return options


def _not_loaded(path: Path, provider: Provider, error: Exception) -> NoReturn:
    if provider.name == "cpu":
        raise BundleError(
            f"{path}: expected a graph that ONNX Runtime can load, found: {one_line(error)}; "
            "update onnxruntime, or export the bundle again with a lower --opset"
        ) from error
    raise ProviderError(
        f"provider {provider.name}: expected it to take all of {path}, found: {one_line(error)}; use --provider cpu"
    ) from error


def _check_tensors(
    path: Path, role: str, kind: str, found: Mapping[str, Any], expected: Mapping[str, TensorContract]
) -> None:
    for name, tensor in expected.items():
        if name not in found:
            raise BundleError(f"{path}: expected the {kind} {name} of role {role}, found none; export it again")
        dtype, rank = found[name].type, len(found[name].shape)
        if (dtype, rank) != (tensor.dtype, tensor.rank):
            raise BundleError(
                f"{path}: {kind} {name}: expected {tensor.dtype} of rank {tensor.rank}, found {dtype} of rank {rank}; "
                "export it again"
            )
    for name in found:
        if name not in expected:
            raise BundleError(f"{path}: expected no {kind} {show(name)} of role {role}, found one; export it again")
