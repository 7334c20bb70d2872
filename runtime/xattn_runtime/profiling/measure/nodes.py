"""Where the time goes inside the graphs: ONNX Runtime's own profile, by node, by layer of the model and by operator.

Nodes carry the names of the model's layers (`layers.0.attention.query/MatMul`), which ONNX Runtime keeps when it fuses.
Operations and bytes are counted from the shapes that the profile records of each node as it ran.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from xattn_runtime.files import MARK

__all__ = ["GraphTime", "NodeTime", "Work", "read_trace", "summarise_graph", "trace_document"]

_KERNEL = "_kernel_time"
_RUN = "model_run"
_OUTER = ("Loop", "If", "Scan")
_COPIES = ("MemcpyToHost", "MemcpyFromHost")
_ITEM_BYTES = {
    "float": 4,
    "float16": 2,
    "bfloat16": 2,
    "double": 8,
    "int8": 1,
    "uint8": 1,
    "int32": 4,
    "int64": 8,
    "bool": 1,
}
# Operators that multiply with constant weights, which ONNX Runtime packs when it loads them, and the bytes of a weight.
_WEIGHT_BYTES = {
    "MatMulNBits": 0.5,
    "DynamicQuantizeMatMul": 1,
    "MatMulIntegerToFloat": 1,
    "MatMulInteger": 1,
    "QLinearMatMul": 1,
}
_PRODUCTS = ("MatMul", "FusedMatMul", "Gemm", "FusedGemm", *_WEIGHT_BYTES)


@dataclass(frozen=True)
class Work:
    """What a node, or all of a run, had to do at least.

    operations: a multiplication and its sum are two, by precision "fp32" or "int8". bytes: weights, and what goes into
    and out of products and attention from memory.
    """

    operations: Mapping[str, float]
    bytes: float


@dataclass(frozen=True)
class NodeTime:
    """A node, over all runs of its graph: milliseconds a run, how often in a run, its share of the graph's time.

    layer: of the model, "" where it belongs to none. provider: in ONNX Runtime's words.
    """

    name: str
    layer: str
    operator: str
    provider: str
    ms: float
    calls: float
    share: float


@dataclass(frozen=True)
class GraphTime:
    """A graph, over `runs` runs: milliseconds a run, of which nodes, and the work of a run.

    between_ms: a run's time that no node has: what ONNX Runtime itself takes. nodes: the longest first. layers,
    operators: milliseconds a run. providers: nodes on each. copies_ms: of a run, from device to device and back.
    """

    role: str
    runs: int
    ms: float
    between_ms: float
    work: Work
    nodes: tuple[NodeTime, ...]
    layers: Mapping[str, float]
    operators: Mapping[str, float]
    providers: Mapping[str, int]
    copies_ms: float


def read_trace(path: Path) -> list[dict[str, Any]]:
    """The events of a profile that ONNX Runtime wrote."""
    events = json.loads(path.read_text(encoding="utf-8"))
    return [event for event in events if isinstance(event, dict)]


def summarise_graph(role: str, events: Sequence[Mapping[str, Any]], warmup: int = 0) -> GraphTime | None:
    """The runs in `events` but for the first `warmup`; None where there is none."""
    runs = sorted((event for event in events if event.get("name") == _RUN), key=lambda event: event["ts"])[warmup:]
    if not runs:
        return None
    began = runs[0]["ts"]
    kernels = [event for event in events if event["ts"] >= began and str(event.get("name", "")).endswith(_KERNEL)]
    inside = [event for event in kernels if event["args"]["op_name"] not in _OUTER]
    count, total = len(runs), sum(run["dur"] for run in runs) / len(runs) / 1000
    nodes = sorted(_nodes(inside, count, total), key=lambda node: -node.ms)
    return GraphTime(
        role=role,
        runs=count,
        ms=total,
        between_ms=max(0.0, total - sum(node.ms for node in nodes)),
        work=_summed(_work(event["args"]) for event in inside).divided(count),
        nodes=tuple(nodes),
        layers=_by(nodes, "layer"),
        operators=_by(nodes, "operator"),
        providers={
            name: sum(node.provider == name for node in nodes) for name in dict.fromkeys(n.provider for n in nodes)
        },
        copies_ms=sum(node.ms for node in nodes if node.operator in _COPIES),
    )


def trace_document(traces: Mapping[str, Sequence[Mapping[str, Any]]]) -> dict[str, Any]:
    """All graphs in one trace, a process each, in the Trace Event Format that Perfetto opens. role → events."""
    events: list[dict[str, Any]] = []
    for process, (role, graph_events) in enumerate(traces.items(), start=1):
        events.append({"ph": "M", "name": "process_name", "pid": process, "tid": 0, "args": {"name": role}})
        events += [{**event, "pid": process} for event in graph_events if event.get("ph") == "X"]
    return {"otherData": {"producer": MARK}, "traceEvents": events, "displayTimeUnit": "ms"}


@dataclass
class _Total:
    operations: dict[str, float]
    bytes: float

    def divided(self, count: int) -> Work:
        return Work({name: value / count for name, value in self.operations.items()}, self.bytes / count)


def _summed(parts: Iterable[Work]) -> _Total:
    total = _Total({}, 0.0)
    for part in parts:
        total.bytes += part.bytes
        for name, value in part.operations.items():
            total.operations[name] = total.operations.get(name, 0.0) + value
    return total


def _nodes(kernels: Iterable[Mapping[str, Any]], runs: int, total_ms: float) -> list[NodeTime]:
    durations: dict[tuple[str, str, str], list[int]] = {}
    for event in kernels:
        name = str(event["name"])[: -len(_KERNEL)]
        key = (name, str(event["args"]["op_name"]), str(event["args"].get("provider", "")))
        durations.setdefault(key, []).append(event["dur"])
    return [
        NodeTime(
            name, _layer(name), operator, provider, ms := sum(times) / runs / 1000, len(times) / runs, ms / total_ms
        )
        for (name, operator, provider), times in durations.items()
    ]


def _layer(name: str) -> str:
    """Graphs of several parts put the part's name before: `step.layers.0.query/MatMul`."""
    return name.rpartition("/")[0]


def _by(nodes: Iterable[NodeTime], what: str) -> dict[str, float]:
    sums: dict[str, float] = {}
    for node in nodes:
        key = getattr(node, what)
        sums[key] = sums.get(key, 0.0) + node.ms
    return dict(sorted(sums.items(), key=lambda item: -item[1]))


def _work(arguments: Mapping[str, Any]) -> Work:
    """Of one node as it ran; nothing for what only moves or changes numbers."""
    operator = str(arguments["op_name"])
    inputs, outputs = (_shapes(arguments.get(f"{kind}_type_shape", [])) for kind in ("input", "output"))
    if not inputs or not outputs:
        return Work({}, 0.0)
    passing = _bytes(inputs) + _bytes(outputs)
    if operator in _PRODUCTS:
        return _product(operator, inputs, outputs, passing)
    if "Attention" in operator:
        return Work({"fp32": _attention(inputs, outputs)}, passing)
    if "Conv" in operator and len(inputs) > 1 and len(inputs[1][1]) > 2:
        weight = inputs[1][1]
        return Work({_precision(operator, inputs): 2 * math.prod(outputs[0][1]) * math.prod(weight[1:])}, passing)
    return Work({}, 0.0)


def _product(operator: str, inputs: Sequence[_Shape], outputs: Sequence[_Shape], passing: float) -> Work:
    output, inner = outputs[0][1], inputs[0][1][-1]
    operations = 2.0 * math.prod(output) * inner
    both = [shape for _, shape in inputs if len(shape) > 1]
    weights = 0.0
    if operator in _WEIGHT_BYTES or len(both) < 2:  # the second factor is packed, and has no shape
        weights = inner * output[-1] * _WEIGHT_BYTES.get(operator, _ITEM_BYTES[inputs[0][0]])
    return Work({_precision(operator, inputs): operations}, passing + weights)


def _attention(inputs: Sequence[_Shape], outputs: Sequence[_Shape]) -> float:
    """Two products, queries with keys and weights with values, over all keys, those of the past included."""
    query, key = inputs[0][1], inputs[1][1]
    keys = max((shape[2] for _, shape in (*inputs[1:], *outputs[1:]) if len(shape) == 4), default=key[-2])
    width = query[-1] if len(query) == 3 else query[1] * query[3]
    return 4.0 * query[0] * query[-2] * width * keys


def _precision(operator: str, inputs: Sequence[_Shape]) -> str:
    whole = operator in _WEIGHT_BYTES or "Integer" in operator or "QLinear" in operator
    return "int8" if whole or inputs[0][0] in ("int8", "uint8") else "fp32"


_Shape = tuple[str, list[int]]


def _shapes(arguments: Any) -> list[_Shape]:
    return [(name, shape) for one in arguments for name, shape in one.items()] if isinstance(arguments, list) else []


def _bytes(shapes: Iterable[_Shape]) -> float:
    return float(sum(_ITEM_BYTES.get(name, 4) * math.prod(shape) for name, shape in shapes))
