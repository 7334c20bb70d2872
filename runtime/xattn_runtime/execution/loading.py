"""Has ONNX Runtime load a graph on exactly the provider that was asked for, or says why that cannot be.

ONNX Runtime gives a provider what it takes and the CPU the rest, and says nothing: so the placement of every node is
recorded, and heavy nodes that went elsewhere are an error unless the CPU may have them.
"""

from __future__ import annotations

import logging
import os
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NoReturn

from xattn_runtime.bundle.manifest import LOWEST_OPSET, Manifest
from xattn_runtime.errors import BundleError, ProviderError
from xattn_runtime.execution.machine import return_freed_memory
from xattn_runtime.execution.processor import sums_int8_exactly
from xattn_runtime.execution.providers import CPU, RequestedProvider, load_onnxruntime, register_plugin
from xattn_runtime.json_reader import one_line

__all__ = ["LoadedGraph", "SessionTuning", "load_graph", "session_entries"]

_SEVERITY_FATAL = 4
# Keeps int8 products exact on every x86 processor, at half the speed on those that are exact without it.
_WIDE_SUMS = "session.x64quantprecision"
_RECORD = "session.record_ep_graph_assignment_info"
_WEIGHTS_FILE = "session.optimized_model_external_initializers_file_name"
_LEAST_WEIGHT_BYTES = "session.optimized_model_external_initializers_min_size_in_bytes"
_REFUSE_CPU = "session.disable_cpu_ep_fallback"
# Parts of the names of operators whose work grows with the weights; all others move or reshape what these compute.
_HEAVY = ("Attention", "Conv", "Einsum", "GRU", "Gemm", "LSTM", "MatMul", "RNN")
_MOST_NAMED = 5
_MOST_SHOWN = 300


@dataclass(frozen=True)
class SessionTuning:
    """What ONNX Runtime is told of a session beyond its threads.

    spinning: whether threads wait busily for the next operator of a run. arena: whether freed memory is kept for what
    comes. trace: the folder for a profile of each graph, which ONNX Runtime writes when it closes it; None for none.
    optimized: the folder that holds graphs as ONNX Runtime optimized them, which the CPU provider loads in place of the
    bundle's own. optimize_into: the folder into which the CPU provider writes them.
    """

    spinning: bool = True
    arena: bool = True
    trace: Path | None = None
    optimized: Path | None = None
    optimize_into: Path | None = None

    def of(self, role: str) -> SessionTuning:
        """For the graph of `role`: a profile whose name begins with it, and graphs called by it."""
        return replace(
            self,
            trace=None if self.trace is None else self.trace / f"{role}.",
            optimized=None if self.optimized is None else self.optimized / f"{role}.onnx",
            optimize_into=None if self.optimize_into is None else self.optimize_into / f"{role}.onnx",
        )


_PLAIN = SessionTuning()


@dataclass(frozen=True)
class LoadedGraph:
    """ONNX Runtime's session, and how many nodes are on each provider: our name → count; None where not recorded."""

    session: Any
    placement: Mapping[str, int] | None


def load_graph(
    path: Path,
    manifest: Manifest,
    requested: RequestedProvider,
    threads: int,
    tuning: SessionTuning = _PLAIN,
    *,
    log: bool = True,
) -> LoadedGraph:
    """Load the graph in `path` with at most `threads` within an operator; where it runs is logged if `log`.

    Raises:
        BundleError: the file is no graph that the CPU can run.
        ProviderError: the provider refuses the graph, or a heavy node of it that the CPU may not have.
    """
    if requested.provider.name == CPU.name:
        return LoadedGraph(_create_on_cpu(path, manifest, threads, tuning), None)
    try:
        session = _create(path, manifest, requested, threads, tuning)
    except Exception as error:  # ONNX Runtime's exceptions share no base class
        if not requested.fallback or isinstance(error, ProviderError):
            _refused(path, manifest, requested, error)
        _log(
            f"provider {requested.provider.name} refused all of {path.name}: {_shown(error)}",
            log=log,
        )
        session = _create_on_cpu(path, manifest, threads, tuning, {_RECORD: "1"})
        placement = _counted(_nodes(session), CPU.name)
    else:
        placement = _placement(path, manifest, requested, session)
    counts = ", ".join(f"{count} on {name}" for name, count in placement.items())
    _log(
        f"{path.name}: {counts or 'nodes on ' + requested.provider.name}",
        log=log and requested.fallback,
    )
    return LoadedGraph(session, placement)


def _create_on_cpu(
    path: Path, manifest: Manifest, threads: int, tuning: SessionTuning, entries: Mapping[str, str] | None = None
) -> Any:
    onnxruntime = load_onnxruntime()
    options = _options(onnxruntime, manifest, threads, tuning, entries or {})
    if tuning.optimize_into is not None:
        options.optimized_model_filepath = os.fspath(tuning.optimize_into)
        # Beside the graph, where ONNX Runtime can map them into memory.
        options.add_session_config_entry(_WEIGHTS_FILE, f"{tuning.optimize_into.name}.data")
        options.add_session_config_entry(_LEAST_WEIGHT_BYTES, "1024")
    if tuning.optimized is not None and tuning.optimized.is_file():
        path = tuning.optimized
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    try:
        session = onnxruntime.InferenceSession(
            os.fspath(path), sess_options=options, providers=[CPU.onnxruntime_name], enable_fallback=0
        )
    except Exception as error:  # ONNX Runtime's exceptions share no base class
        raise BundleError(
            f"{path}: expected a graph that ONNX Runtime can load, found: {one_line(error)}; "
            "update onnxruntime, or export the bundle again with a lower --opset"
        ) from error
    return_freed_memory()  # of weights that ONNX Runtime has replaced by its own form of them
    return session


def _create(path: Path, manifest: Manifest, requested: RequestedProvider, threads: int, tuning: SessionTuning) -> Any:
    onnxruntime, row = load_onnxruntime(), requested.provider
    records = hasattr(onnxruntime.InferenceSession, "get_provider_graph_assignment_info")
    entries = {_RECORD: "1"} if records else {}
    if not records and not requested.fallback:
        entries[_REFUSE_CPU] = "1"
    options = _options(onnxruntime, manifest, threads, tuning, entries)
    if row.onnxruntime_name in onnxruntime.get_available_providers() and requested.library is None:
        providers = [(row.onnxruntime_name, dict(row.options))]
        return onnxruntime.InferenceSession(
            os.fspath(path), sess_options=options, providers=providers, enable_fallback=0
        )
    devices = register_plugin(requested)
    if devices is None:
        raise ProviderError(f"provider {row.name}: expected it in this build of onnxruntime; run {row.install_command}")
    options.add_provider_for_devices(list(devices[:1]), {})
    return onnxruntime.InferenceSession(os.fspath(path), sess_options=options, enable_fallback=0)


def _options(
    onnxruntime: Any, manifest: Manifest, threads: int, tuning: SessionTuning, entries: Mapping[str, str]
) -> Any:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
    # What goes wrong comes back as an exception; nothing may be printed besides.
    options.log_severity_level = _SEVERITY_FATAL
    options.enable_cpu_mem_arena = tuning.arena
    if tuning.trace is not None:
        options.enable_profiling = True
        options.profile_file_prefix = os.fspath(tuning.trace)
    # Several sessions share this process: threads that spin after a run take the cores from the next session.
    entries = {**session_entries(manifest), "session.force_spinning_stop": "1", **entries}
    if not tuning.spinning:
        entries["session.intra_op.allow_spinning"] = "0"
    for key, value in entries.items():
        options.add_session_config_entry(key, value)
    return options


def session_entries(manifest: Manifest) -> dict[str, str]:
    """What the bundle wants ONNX Runtime to be told on this processor, as configuration entries of a session."""
    entries = dict(manifest.session_options or {})
    if sums_int8_exactly():
        entries.pop(_WIDE_SUMS, None)
    return entries


def _placement(path: Path, manifest: Manifest, requested: RequestedProvider, session: Any) -> Mapping[str, int]:
    """Nodes on each provider; ProviderError where a heavy one is elsewhere, unless the CPU may have it."""
    row = requested.provider
    if row.onnxruntime_name not in session.get_providers() and requested.library is None and row.plugin_module is None:
        from xattn_runtime.execution.provider_status import driver_complaint

        reason = driver_complaint(row) or "its library did not load: a library that it needs is missing"
        raise ProviderError(
            f"provider {row.name}: expected {row.onnxruntime_name} to take {path}, found "
            f"{', '.join(session.get_providers())}: {reason}; see `xattn-edge providers`, or use --provider cpu"
        )
    nodes = _nodes(session)
    refused = [
        f"{operator} {name}" for provider, operator, name in nodes if provider == CPU.name and _is_heavy(operator)
    ]
    if refused and not requested.fallback:
        _refused(path, manifest, requested, None, refused)
    return _counted(nodes, row.name)


def _nodes(session: Any) -> list[tuple[str, str, str]]:
    """Provider (`cpu`, or another's name), operator and name of every node; empty where it was not recorded."""
    if not hasattr(session, "get_provider_graph_assignment_info"):
        return []
    try:
        subgraphs = session.get_provider_graph_assignment_info()
    except Exception:  # it was not recorded; ONNX Runtime's exceptions share no base class
        return []
    return [
        (CPU.name if part.ep_name == CPU.onnxruntime_name else part.ep_name, node.op_type, node.name)
        for part in subgraphs
        for node in part.get_nodes()
    ]


def _counted(nodes: list[tuple[str, str, str]], name: str) -> Mapping[str, int]:
    counts = Counter(CPU.name if provider == CPU.name else name for provider, _, _ in nodes)
    return {key: counts[key] for key in sorted(counts, key=lambda key: key == CPU.name)}


def _is_heavy(operator: str) -> bool:
    return any(part in operator for part in _HEAVY)


def _refused(
    path: Path,
    manifest: Manifest,
    requested: RequestedProvider,
    error: Exception | None,
    nodes: list[str] | None = None,
) -> NoReturn:
    if isinstance(error, ProviderError):
        raise error
    row = requested.provider
    if error is not None:
        reason = _shown(error)
    else:
        more = f" and {len(nodes) - _MOST_NAMED} more" if nodes and len(nodes) > _MOST_NAMED else ""
        reason = f"that it refused {', '.join((nodes or [])[:_MOST_NAMED])}{more}"
    raise ProviderError(
        f"provider {row.name}: expected it to take all of {path}, found: {reason}; {_advice(manifest, requested)}"
        "use --fallback to run the rest on the CPU, or --provider cpu"
    ) from error


def _advice(manifest: Manifest, requested: RequestedProvider) -> str:
    """What to export otherwise, as the provider's row says."""
    requirements = requested.provider.requirements
    if manifest.attention not in requirements.attention:
        opset = min(requirements.highest_opset, LOWEST_OPSET[requirements.attention[0]])
        return f"export it again with --attention {requirements.attention[0]} --opset {opset}, "
    if manifest.opset > requirements.highest_opset:
        return f"export it again with --opset {requirements.highest_opset} or lower, "
    return ""


def _shown(error: Exception) -> str:
    """The end of what ONNX Runtime says, where the reason stands; what comes before is names of its functions."""
    text = one_line(error)
    for start in ("does not support the following", "CUDA driver version", "out of memory", "Failed to allocate"):
        if (place := text.find(start)) >= 0:
            return text[place : place + _MOST_SHOWN].partition(" Errors during")[0]
    return text if len(text) <= _MOST_SHOWN else "…" + text[-_MOST_SHOWN:]


def _log(text: str, *, log: bool) -> None:
    if log:
        logging.getLogger("xattn_runtime").info(text)
