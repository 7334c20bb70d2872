"""What this machine has of the execution providers: builds, devices, drivers, and what stands in the way.

It asks ONNX Runtime, the installed packages and the driver; it creates no session.
"""

from __future__ import annotations

import ctypes
import ctypes.util
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

from xattn_runtime.errors import DependencyError, ProviderError
from xattn_runtime.execution.packages import PackageConflict, conflict_over, onnxruntime_versions, package_conflict
from xattn_runtime.execution.providers import (
    PROVIDERS,
    Provider,
    RequestedProvider,
    load_onnxruntime,
    missing_system,
    register_plugin,
)

__all__ = [
    "MachineStatus",
    "NvidiaDriver",
    "ProviderStatus",
    "driver_complaint",
    "machine_status",
    "nvidia_driver",
    "provider_status",
]

_CUDA_LIBRARIES = ("libcuda.so.1", "nvcuda.dll")
_NAME_BYTES = 128


@dataclass(frozen=True)
class ProviderStatus:
    """A provider as this machine has it.

    devices: the kinds that ONNX Runtime reports for it ("CPU", "GPU"). missing: what it lacks, None where nothing is
    known to be missing; only a session and `verify` prove that it works. how_to_get: the command.
    """

    name: str
    onnxruntime_name: str
    available: bool
    how_to_get: str
    onnxruntime_version: str | None
    devices: tuple[str, ...]
    missing: str | None = None
    platforms: str = ""
    proof: str = ""


@dataclass(frozen=True)
class NvidiaDriver:
    """The CUDA version that the driver supports, such as "12.4", and the names of its GPUs."""

    cuda_version: str
    devices: tuple[str, ...]


@dataclass(frozen=True)
class MachineStatus:
    """All providers, with what they have in common: versions, the driver, and a conflict of packages if there is one.

    versions: distribution → version, of onnxruntime's builds and plugins.
    """

    providers: tuple[ProviderStatus, ...]
    versions: dict[str, str]
    build: str | None
    nvidia: NvidiaDriver | None
    conflict: PackageConflict | None


def provider_status() -> tuple[ProviderStatus, ...]:
    """Every provider of the table with what is here of it; never raises for what is not installed."""
    return machine_status().providers


def machine_status() -> MachineStatus:
    """All that can be said without running a graph; never raises for what is not installed."""
    try:
        onnxruntime = load_onnxruntime()
    except DependencyError:
        onnxruntime = None
    driver = nvidia_driver()
    build = None if onnxruntime is None else getattr(onnxruntime, "get_build_info", lambda: None)()
    providers = tuple(_status(row, onnxruntime, driver) for row in PROVIDERS)
    return MachineStatus(providers, onnxruntime_versions(), build, driver, package_conflict())


def nvidia_driver() -> NvidiaDriver | None:
    """What NVIDIA's driver says of itself, None where there is none. It starts nothing on the GPU."""
    for name in _CUDA_LIBRARIES:
        try:
            library = ctypes.CDLL(name)
        except OSError:
            continue
        version, count = ctypes.c_int(), ctypes.c_int()
        if library.cuDriverGetVersion(ctypes.byref(version)):
            return None
        devices = []
        if not library.cuInit(0) and not library.cuDeviceGetCount(ctypes.byref(count)):
            for index in range(count.value):
                label = ctypes.create_string_buffer(_NAME_BYTES)
                if not library.cuDeviceGetName(label, _NAME_BYTES, index):
                    devices.append(label.value.decode(errors="replace"))
        return NvidiaDriver(f"{version.value // 1000}.{version.value % 1000 // 10}", tuple(devices))
    return None


def driver_complaint(row: Provider) -> str | None:
    """Why the driver cannot serve `row`: there is none, it is older than the build's CUDA, or it sees no GPU.

    None where it can, or where the provider needs no driver of NVIDIA's.
    """
    if row.memory != "cuda":
        return None
    driver = nvidia_driver()
    if driver is None:
        return "no NVIDIA driver is installed"
    required = str(getattr(load_onnxruntime(), "cuda_version", "") or "")
    if required and _major(driver.cuda_version) < _major(required):
        return f"the NVIDIA driver is too old: it supports CUDA {driver.cuda_version}, and this build needs {required}"
    return None if driver.devices else "the NVIDIA driver sees no GPU"


def _major(version: str) -> int:
    head = version.partition(".")[0]
    return int(head) if head.isdigit() else 0


def _status(row: Provider, onnxruntime: Any, driver: NvidiaDriver | None) -> ProviderStatus:
    listed = onnxruntime is not None and row.onnxruntime_name in onnxruntime.get_available_providers()
    missing, devices = None if listed else _missing_package(row, onnxruntime), _devices(row, onnxruntime)
    if onnxruntime is not None and not listed and row.plugin_module is not None and find_spec(row.plugin_module):
        try:
            plugin_devices = register_plugin(RequestedProvider(row))
            missing, devices = None, tuple(dict.fromkeys(entry.device.type.name for entry in plugin_devices or ()))
        except ProviderError as error:
            missing = f"{row.plugin_module}: {str(error).partition(', plugin_devices ')[2].partition(';')[0]}"
    if missing is None and listed:
        missing = driver_complaint(row)
        if row.memory == "cuda" and driver is not None and driver.devices:
            devices = devices or ("GPU",)
    return ProviderStatus(
        name=row.name,
        onnxruntime_name=row.onnxruntime_name,
        available=missing is None,
        how_to_get=row.install_command,
        onnxruntime_version=None if onnxruntime is None else onnxruntime.__version__,
        devices=devices,
        missing=missing,
        platforms=row.platforms,
        proof=row.proof,
    )


def _missing_package(row: Provider, onnxruntime: Any) -> str:
    if onnxruntime is None:
        return "no build of onnxruntime is installed"
    if row.package is None:
        return "no package on PyPI holds it"
    if (system := missing_system(row)) is not None:
        return f"this is not {system}"
    if conflict_over(row.package) is not None:
        return f"{row.package} is installed, and another onnxruntime over it"
    return f"{row.package} is not installed"


def _devices(row: Provider, onnxruntime: Any) -> tuple[str, ...]:
    """Kinds of device; empty on builds without `get_ep_devices`."""
    entries: Sequence[Any] = getattr(onnxruntime, "get_ep_devices", list)()
    return tuple(dict.fromkeys(entry.device.type.name for entry in entries if entry.ep_name == row.onnxruntime_name))
