"""Devices by name: how a bundle for each of them is made, and whether a bundle would run on it.

The rows say which provider computes there; what it takes is in that provider's own row, in
`xattn_runtime/execution/providers.py`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from onnx import ModelProto

from xattn_export.bundle.writer import check_output
from xattn_export.exporter import ExportReport, export_checkpoint
from xattn_export.graph.conformance import examine
from xattn_export.graph.reading import read_graph
from xattn_export.quantize.base.options import Mode
from xattn_export.quantize.bundle import quantize_bundle
from xattn_export.quantize.calibration.examples import golden_examples
from xattn_export.quantize.report import QuantizeReport
from xattn_runtime.bundle.folder import open_bundle
from xattn_runtime.bundle.manifest import Attention, TaskName
from xattn_runtime.errors import UserError
from xattn_runtime.execution.providers import CPU, PROVIDERS, GraphRequirements, Provider
from xattn_runtime.files import scratch_folder
from xattn_runtime.json_reader import likely_meant
from xattn_runtime.progress import Progress, silent

__all__ = ["TARGETS", "Fit", "Target", "TargetReport", "export_for_target", "fit_of", "target_of"]


@dataclass(frozen=True)
class Target:
    """A kind of device.

    provider: that computes on it; what it refuses goes to the CPU provider of the same build. attention, opset, mode,
    static_batch: how a bundle for it is made. highest_opset: that its engines read. devices, why: in words.
    """

    name: str
    devices: str
    provider: str
    attention: Attention
    opset: int
    mode: Mode
    why: str
    static_batch: bool = False
    highest_opset: int = 24

    @property
    def row(self) -> Provider:
        """The provider's row."""
        return next(row for row in PROVIDERS if row.name == self.provider)


TARGETS: tuple[Target, ...] = (
    Target(
        "raspberry-pi",
        "Raspberry Pi 4 and 5 and other aarch64 Linux without a GPU",
        "cpu",
        "standard",
        23,
        "int8",
        "the CPU provider has int8 products for Arm, and runs the Attention operator",
    ),
    Target(
        "jetson",
        "NVIDIA Jetson",
        "cuda",
        "standard",
        23,
        "fp16",
        "CUDA has fast kernels of Attention for half precision",
    ),
    Target(
        "android",
        "Android phones, by the onnxruntime-android package",
        "cpu",
        "decomposed",
        18,
        "int8",
        "apps hold ONNX Runtimes of many ages: MatMul and Softmax of opset 18 run in all of them",
        highest_opset=21,
    ),
    Target(
        "browser",
        "web pages, by onnxruntime-web (WebAssembly)",
        "cpu",
        "decomposed",
        20,
        "int8",
        "small to download, and no operator that an older onnxruntime-web lacks",
    ),
    Target(
        "npu",
        "Qualcomm NPUs, by the QNN provider",
        "qnn",
        "decomposed",
        21,
        "int8-static",
        "the NPU takes shapes and ranges that are fixed beforehand: the image encoder runs there, text on the CPU",
        static_batch=True,
    ),
    Target(
        "server-cuda",
        "servers with an NVIDIA GPU",
        "cuda",
        "standard",
        23,
        "fp16",
        "CUDA has fast kernels of Attention for half precision",
    ),
)


@dataclass(frozen=True)
class Fit:
    """Where one graph of a bundle would run on a target: the provider's name, `cpu`, or None for nowhere; and why."""

    runs_on: str | None
    reasons: tuple[str, ...]


@dataclass(frozen=True)
class TargetReport:
    """Whether a bundle would run on a target: role → fit."""

    target: str
    provider: str
    graphs: Mapping[str, Fit]

    @property
    def runs(self) -> bool:
        """Whether every graph runs somewhere, and one of them on the provider that the target is chosen for."""
        places = [fit.runs_on for fit in self.graphs.values()]
        return None not in places and self.provider in places

    def to_dict(self) -> dict[str, Any]:
        """As JSON values."""
        return {"runs": self.runs, **asdict(self)}


def target_of(name: str) -> Target:
    """The target called `name`; UserError where there is none."""
    for target in TARGETS:
        if target.name == name:
            return target
    names = [target.name for target in TARGETS]
    raise UserError(f"--target: expected one of {', '.join(names)}, found {name!r}{likely_meant(name, names)}")


def export_for_target(
    source: Path,
    output: Path,
    target: Target,
    *,
    task: TaskName | None = None,
    with_attention: bool = False,
    base: Path | None = None,
    overwrite: bool = False,
    command: str = "",
    progress: Progress = silent,
) -> tuple[ExportReport, QuantizeReport]:
    """Make the bundle `output` of `source` for `target`: exported, then quantized in its mode.

    Ranges of `int8-static` are calibrated on the golden inputs that the export makes.
    Raises what `export_checkpoint` and `quantize_bundle` raise; nothing is left behind then.
    """
    check_output(output, overwrite=overwrite)
    with scratch_folder(output) as between:
        exported = export_checkpoint(
            source,
            between / output.name,
            task=task,
            attention=target.attention,
            opset=target.opset,
            static_batch=target.static_batch,
            with_attention=with_attention,
            base=base,
            command=command,
            progress=lambda what, share: progress(what, 0.7 * share),
        )
        needs_ranges = target.mode == "int8-static"
        quantized = quantize_bundle(
            between / output.name,
            output,
            mode=target.mode,
            examples=golden_examples(open_bundle(between / output.name)) if needs_ranges else None,
            overwrite=overwrite,
            command=command,
            progress=lambda what, share: progress(what, 0.7 + 0.3 * share),
        )
    return exported, quantized


def fit_of(path: Path, target: Target) -> TargetReport:
    """Whether the bundle in `path` would run on `target`, and where each of its graphs; runs nothing.

    Raises BundleError where it is none, or is damaged.
    """
    bundle = open_bundle(path)
    graphs = {}
    for role, entry in bundle.manifest.graphs.items():
        graph = read_graph(bundle.file(entry.file))
        on_provider = _reasons(graph, target.row.requirements, entry.precision, target.highest_opset)
        on_cpu = _reasons(graph, CPU.requirements, entry.precision, target.highest_opset, heeds_precision=False)
        if not on_provider:
            graphs[role] = Fit(target.provider, ())
        else:
            graphs[role] = Fit(None if on_cpu else CPU.name, tuple(on_cpu or on_provider))
    return TargetReport(target.name, target.provider, graphs)


def _reasons(
    graph: ModelProto,
    requirements: GraphRequirements,
    precision: str,
    highest_opset: int,
    *,
    heeds_precision: bool = True,
) -> list[str]:
    """Why a provider with these requirements does not accept the graph; empty where it does."""
    facts, reasons = examine(graph), []
    highest = min(requirements.highest_opset, highest_opset)
    if not facts.standard:
        reasons.append(f"it is not standard: {facts.offences[0]}")
    if facts.opset is not None and facts.opset > highest:
        reasons.append(f"opset {facts.opset}, at most {highest}")
    if "Attention" in facts.operators and "standard" not in requirements.attention:
        reasons.append("the Attention operator, which is to be decomposed")
    if heeds_precision and precision not in requirements.precisions:
        reasons.append(f"{precision}, expected {' or '.join(requirements.precisions)}")
    if "Loop" in facts.operators and not requirements.loops:
        reasons.append("the operator Loop")
    if requirements.static_shapes and (axes := _dynamic_axes(graph)):
        reasons.append(f"axes without a size: {', '.join(axes)}")
    return reasons


def _dynamic_axes(graph: ModelProto) -> list[str]:
    axes = [axis for value in graph.graph.input for axis in value.type.tensor_type.shape.dim]
    return list(dict.fromkeys(axis.dim_param or "unnamed" for axis in axes if not axis.HasField("dim_value")))
