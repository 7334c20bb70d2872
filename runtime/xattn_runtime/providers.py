"""The execution providers that this runtime offers, what is installed of them, and how to get the others.

One frozen row a provider. It loads ONNX Runtime on first need and creates no session; `session.py` does.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from xattn_runtime._reading import one_line, show
from xattn_runtime.errors import DependencyError, ProviderError

__all__ = ["PROVIDERS", "Provider", "ProviderStatus", "load_onnxruntime", "provider_status", "resolve_provider"]


@dataclass(frozen=True)
class Provider:
    """An execution provider: our name, ONNX Runtime's name, the extra that installs it, its options."""

    name: str
    onnxruntime_name: str
    extra: str
    options: Mapping[str, str] = field(default_factory=dict)

    @property
    def install_command(self) -> str:
        """What a person types to get it."""
        return f'pip install "xattn-edge[{self.extra}]"'


PROVIDERS: tuple[Provider, ...] = (
    Provider("cpu", "CPUExecutionProvider", "cpu"),
    Provider("cuda", "CUDAExecutionProvider", "cuda"),
    Provider("openvino", "OpenVINOExecutionProvider", "openvino", {"device_type": "CPU"}),
)


@dataclass(frozen=True)
class ProviderStatus:
    """A provider as this machine has it. `devices` are the kinds that ONNX Runtime reports for it ("CPU", "GPU")."""

    name: str
    onnxruntime_name: str
    available: bool
    how_to_get: str
    onnxruntime_version: str | None
    devices: tuple[str, ...]


def load_onnxruntime() -> Any:
    """The module onnxruntime, quiet on standard error; DependencyError where no build of it is installed."""
    try:
        import onnxruntime
    except ImportError as error:
        raise DependencyError(
            f"onnxruntime: expected an installed build of it, found: {one_line(error)}; "
            f"run {PROVIDERS[0].install_command}"
        ) from error
    return onnxruntime


def resolve_provider(name: str = "cpu") -> Provider:
    """The installed provider called `name`.

    Raises ProviderError for an unknown name, or one that the installed ONNX Runtime lacks; DependencyError where there
    is no ONNX Runtime.
    """
    row = next((row for row in PROVIDERS if row.name == name), None)
    if row is None:
        known = ", ".join(row.name for row in PROVIDERS)
        raise ProviderError(f"provider: expected one of {known}, found {show(name)}; see `xattn-edge providers`")
    available = load_onnxruntime().get_available_providers()
    if row.onnxruntime_name not in available:
        raise ProviderError(
            f"provider {name}: expected an ONNX Runtime with {row.onnxruntime_name}, found one with "
            f"{', '.join(available)}; run {row.install_command} in an environment of its own, "
            "as only one build of onnxruntime can be installed"
        )
    return row


def provider_status() -> tuple[ProviderStatus, ...]:
    """Every provider of the table with what is here of it; never raises for what is not installed."""
    try:
        onnxruntime = load_onnxruntime()
    except DependencyError:
        return tuple(
            ProviderStatus(row.name, row.onnxruntime_name, False, row.install_command, None, ()) for row in PROVIDERS
        )
    available = onnxruntime.get_available_providers()
    devices = _devices(onnxruntime)
    return tuple(
        ProviderStatus(
            name=row.name,
            onnxruntime_name=row.onnxruntime_name,
            available=row.onnxruntime_name in available,
            how_to_get=row.install_command,
            onnxruntime_version=onnxruntime.__version__,
            devices=tuple(devices.get(row.onnxruntime_name, ())),
        )
        for row in PROVIDERS
    )


def _devices(onnxruntime: Any) -> dict[str, list[str]]:
    """ONNX Runtime's provider name → kinds of device; empty on builds without `get_ep_devices` (before 1.23)."""
    found: dict[str, list[str]] = {}
    for entry in getattr(onnxruntime, "get_ep_devices", list)():
        kind = entry.device.type.name
        kinds = found.setdefault(entry.ep_name, [])
        if kind not in kinds:
            kinds.append(kind)
    return found
