"""xattn_export: a trained model becomes a bundle, and a bundle becomes a smaller bundle. Runs on a workstation.

It needs torch, onnx, onnxscript and onnxruntime, and loads each when first used: importing this package loads none.

    from xattn_export import export_checkpoint, quantize_bundle
    export_checkpoint(Path("checkpoints/shapes-vqa"), Path("shapes-vqa.xattn"))
    quantize_bundle(Path("shapes-vqa.xattn"), Path("shapes-vqa-int8.xattn"))
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from xattn_export.bundle.record import record_calibration, record_evaluation
    from xattn_export.exporter import ExportReport, export_checkpoint
    from xattn_export.quantize import QuantizeOptions, QuantizeReport, quantize_bundle
    from xattn_runtime.bundle.inspection import InspectReport, inspect_path

__all__ = [
    "ExportReport",
    "InspectReport",
    "QuantizeOptions",
    "QuantizeReport",
    "export_checkpoint",
    "inspect_path",
    "quantize_bundle",
    "record_calibration",
    "record_evaluation",
]

_MODULES = {
    "ExportReport": "xattn_export.exporter",
    "InspectReport": "xattn_runtime.bundle.inspection",
    "QuantizeOptions": "xattn_export.quantize",
    "QuantizeReport": "xattn_export.quantize",
    "export_checkpoint": "xattn_export.exporter",
    "inspect_path": "xattn_runtime.bundle.inspection",
    "quantize_bundle": "xattn_export.quantize",
    "record_calibration": "xattn_export.bundle.record",
    "record_evaluation": "xattn_export.bundle.record",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_MODULES[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
