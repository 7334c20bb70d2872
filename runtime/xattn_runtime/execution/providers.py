"""The execution providers that this runtime offers, as a table of frozen rows, and which one of them is meant.

It loads ONNX Runtime on first need and creates no session; `session.py` does. What a machine has of all this is in
`provider_status.py`, and `auto` and `arm` are decided in `provider_choice.py`.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from xattn_runtime.errors import DependencyError, ProviderError
from xattn_runtime.execution.packages import conflict_over
from xattn_runtime.execution.telemetry import disable_telemetry
from xattn_runtime.json_reader import likely_meant, one_line, show

if TYPE_CHECKING:
    from xattn_runtime.bundle.manifest import Attention

__all__ = [
    "CPU",
    "PROVIDERS",
    "RESOLVED_ON_DEVICE",
    "GraphRequirements",
    "Provider",
    "RequestedProvider",
    "load_onnxruntime",
    "missing_system",
    "parse_provider",
    "register_plugin",
    "require_available",
    "resolve_provider",
    "with_fallback",
]

RESOLVED_ON_DEVICE = ("auto", "arm")
"""Names that stand for a provider which is chosen on the machine."""

_ALL: tuple[Attention, ...] = ("standard", "decomposed")
_DECOMPOSED: tuple[Attention, ...] = ("decomposed",)


@dataclass(frozen=True)
class GraphRequirements:
    """What a graph must be made of for a provider to run it.

    attention: forms of it, the better one first. highest_opset: of ai.onnx. precisions: of the weights, the best one
    first. static_shapes: whether every axis must have a size. loops: whether it runs the operator `Loop`.
    """

    attention: tuple[Attention, ...] = _ALL
    highest_opset: int = 24
    precisions: tuple[str, ...] = ("int8", "int4", "fp32")
    static_shapes: bool = False
    loops: bool = True


@dataclass(frozen=True)
class Provider:
    """An execution provider.

    onnxruntime_name: as ONNX Runtime calls it. package: the distribution that holds it, None where it has to be built.
    platforms: that the package is made for. install_command: that installs it. requirements: of the graphs it runs.
    proof: what shows that it truly works, beyond being listed. options: it is created with. device: kind that it
    computes on. memory: ONNX Runtime's name of that device's memory, where tensors can be kept there. plugin_module:
    of a package that brings the provider as a library beside any onnxruntime.
    """

    name: str
    onnxruntime_name: str
    package: str | None
    platforms: str
    install_command: str
    requirements: GraphRequirements
    proof: str
    options: Mapping[str, str] = field(default_factory=dict)
    device: str = "CPU"
    memory: str | None = None
    plugin_module: str | None = None


# Providers of one operating system alone: its name for Python, and for people.
_ONE_SYSTEM = {"coreml": ("darwin", "macOS"), "directml": ("win32", "Windows")}
_BUILD = "build ONNX Runtime from source with --build_wheel and "
_GOLDEN = "and `xattn-edge verify` passes"
CPU = Provider(
    "cpu",
    "CPUExecutionProvider",
    "onnxruntime",
    "any; on aarch64 with Arm's KleidiAI kernels",
    'pip install "xattn-edge[cpu]"',
    GraphRequirements(),
    "`xattn-edge verify` passes",
)
PROVIDERS: tuple[Provider, ...] = (
    CPU,
    Provider(
        "cuda",
        "CUDAExecutionProvider",
        "onnxruntime-gpu",
        "Linux x86-64 and aarch64, Windows; an NVIDIA GPU",
        'pip install "xattn-edge[cuda]"',
        GraphRequirements(highest_opset=23, precisions=("fp16", "fp32")),
        f"the driver is as new as the build's CUDA, a GPU is listed, {_GOLDEN}",
        device="GPU",
        memory="cuda",
    ),
    Provider(
        "tensorrt",
        "TensorrtExecutionProvider",
        "onnxruntime-gpu",
        "Linux x86-64 and aarch64, Windows; an NVIDIA GPU",
        'pip install "xattn-edge[cuda]" tensorrt',
        GraphRequirements(_DECOMPOSED, 20, ("fp16", "fp32"), loops=False),
        f"libnvinfer loads, a GPU is listed, {_GOLDEN}",
        {"trt_fp16_enable": "0"},
        device="GPU",
        memory="cuda",
    ),
    Provider(
        "openvino",
        "OpenVINOExecutionProvider",
        "onnxruntime-openvino",
        "Linux x86-64, Windows; the package onnxruntime-ep-openvino for Intel's processors alone",
        'pip install "xattn-edge[openvino]"',
        GraphRequirements(_DECOMPOSED, 23, ("int8", "fp32"), loops=False),
        f"every heavy node is in a subgraph of its own, {_GOLDEN}",
        {"device_type": "CPU"},
        plugin_module="onnxruntime_ep_openvino",
    ),
    Provider(
        "directml",
        "DmlExecutionProvider",
        "onnxruntime-directml",
        "Windows; any GPU with DirectX 12",
        "pip install onnxruntime-directml",
        GraphRequirements(_DECOMPOSED, 20, ("fp16", "fp32")),
        f"a GPU is listed, {_GOLDEN}",
        device="GPU",
    ),
    Provider(
        "coreml",
        "CoreMLExecutionProvider",
        "onnxruntime",
        "macOS, iOS",
        'pip install "xattn-edge[cpu]"',
        GraphRequirements(_DECOMPOSED, 20, ("fp16", "fp32"), static_shapes=True, loops=False),
        f"every heavy node is in a subgraph of its own, {_GOLDEN}",
        {"ModelFormat": "MLProgram"},
        device="NPU",
    ),
    Provider(
        "qnn",
        "QNNExecutionProvider",
        "onnxruntime-qnn",
        "Windows and Linux on aarch64 and x86-64, Android; a Qualcomm NPU",
        "pip install onnxruntime onnxruntime-qnn",
        GraphRequirements(_DECOMPOSED, 21, ("int8", "fp16"), static_shapes=True, loops=False),
        f"a device is listed, every heavy node is on it, {_GOLDEN}",
        device="NPU",
        plugin_module="onnxruntime_qnn",
    ),
    Provider(
        "xnnpack",
        "XnnpackExecutionProvider",
        None,
        "Android, iOS, Linux",
        f"{_BUILD}--use_xnnpack",
        GraphRequirements(_DECOMPOSED, 20, ("fp32",), static_shapes=True, loops=False),
        f"every heavy node is on it, {_GOLDEN}",
    ),
    Provider(
        "acl",
        "ACLExecutionProvider",
        None,
        "Linux on aarch64",
        f"{_BUILD}--use_acl",
        GraphRequirements(_DECOMPOSED, 20, ("fp32",), static_shapes=True, loops=False),
        f"every heavy node is on it, {_GOLDEN}",
    ),
    Provider(
        "nnapi",
        "NnapiExecutionProvider",
        None,
        "Android 8.1 to 14",
        f"{_BUILD}--use_nnapi --android",
        GraphRequirements(_DECOMPOSED, 20, ("int8", "fp32"), static_shapes=True, loops=False),
        f"every heavy node is on it, {_GOLDEN}",
        device="NPU",
    ),
    Provider(
        "webgpu",
        "WebGpuExecutionProvider",
        "onnxruntime-ep-webgpu",
        "browsers; Linux (with a Vulkan loader), Windows, macOS",
        "pip install onnxruntime onnxruntime-ep-webgpu",
        GraphRequirements(_DECOMPOSED, 20, ("fp16", "int4", "fp32")),
        f"a GPU is listed, {_GOLDEN}",
        device="GPU",
        plugin_module="onnxruntime_ep_webgpu",
    ),
)


@dataclass(frozen=True)
class RequestedProvider:
    """What `--provider` says: a row, whether the CPU may run what it refuses, and the plugin library that brings it."""

    provider: Provider
    fallback: bool = False
    library: Path | None = None


def load_onnxruntime() -> Any:
    """The module onnxruntime, quiet on standard error, its telemetry off unless the environment says otherwise.

    Raises:
        DependencyError: no build of it is installed, or what is left of two builds that shared one folder.
    """
    is_disabled_now = disable_telemetry()
    try:
        import onnxruntime
    except ImportError as error:
        if isinstance(error.__cause__, KeyboardInterrupt):  # Ctrl-C while its library was loaded
            raise error.__cause__ from None
        raise DependencyError(
            f"onnxruntime: expected an installed build of it, found: {one_line(error)}; run {CPU.install_command}"
        ) from error
    if not hasattr(onnxruntime, "InferenceSession"):
        raise DependencyError(
            "onnxruntime: expected a whole build of it, found an empty package, as is left where one of two builds was "
            "removed; run pip install --force-reinstall onnxruntime, or see `xattn-edge providers`"
        )
    if is_disabled_now:  # for builds that do not read the environment, and where it was imported before
        onnxruntime.disable_telemetry_events()
    return onnxruntime


def with_fallback(text: str, fallback: bool) -> str:
    """What `--provider TEXT --fallback` means, as one text."""
    return f"{text},{CPU.name}" if fallback and text != CPU.name and not text.endswith(f",{CPU.name}") else text


def parse_provider(text: str) -> RequestedProvider:
    """What is meant by `NAME`, `NAME,cpu` (the CPU runs what NAME refuses) or `NAME=LIBRARY` (a plugin by path).

    With a library, NAME may also be one that the table does not have: then it is that provider's own name.
    Raises ProviderError for a name that is not known, or another second one than cpu.
    """
    first, comma, second = text.partition(",")
    name, equals, library = first.partition("=")
    if comma and second != CPU.name:
        raise ProviderError(
            f"provider: expected {CPU.name} after the comma, as in {show(f'{name},{CPU.name}')}, found {show(second)}"
        )
    row = next((row for row in PROVIDERS if row.name == name), None)
    if row is None and not (equals and name):
        known = [*(row.name for row in PROVIDERS), *RESOLVED_ON_DEVICE]
        meant = likely_meant(name, known) or "; see `xattn-edge providers`"
        raise ProviderError(f"provider: expected one of {', '.join(known)}, found {show(name)}{meant}")
    if equals and not Path(library).is_file():
        raise ProviderError(
            f"provider {name}: expected a plugin library, found no file {show(library)}; check the path"
        )
    if row is None:
        row = Provider(name, name, None, "as the library says", "", GraphRequirements(), _GOLDEN)
    return RequestedProvider(row, fallback=bool(comma), library=Path(library).absolute() if equals else None)


def resolve_provider(name: str = CPU.name) -> Provider:
    """The provider called `name`, which the installed ONNX Runtime has.

    Raises ProviderError for an unknown name, or one that is not there; DependencyError where there is no ONNX Runtime.
    """
    requested = parse_provider(name)
    require_available(requested)
    return requested.provider


def require_available(requested: RequestedProvider) -> None:
    """ProviderError unless the installed ONNX Runtime has the provider, or a plugin that brings it."""
    row, available = requested.provider, load_onnxruntime().get_available_providers()
    if row.onnxruntime_name in available or register_plugin(requested) is not None:
        return
    raise ProviderError(
        f"provider {row.name}: expected an ONNX Runtime with {row.onnxruntime_name}, found one with "
        f"{', '.join(available)}; {_how_to_get(row)}"
    )


def _how_to_get(row: Provider) -> str:
    if (system := missing_system(row)) is not None:
        return f"it runs on {row.platforms}; this is not {system}"
    if row.package is None:
        return f"no package on PyPI holds it: {row.install_command}"
    if (conflict := conflict_over(row.package)) is not None:
        return f"{conflict}; run {conflict.fix_command}"
    return f"run {row.install_command} in an environment of its own, as only one build of onnxruntime can be installed"


def missing_system(row: Provider) -> str | None:
    """The operating system that the provider is for, where this is another one."""
    platform, system = _ONE_SYSTEM.get(row.name, (sys.platform, None))
    return None if sys.platform == platform else system


def register_plugin(requested: RequestedProvider) -> tuple[Any, ...] | None:
    """Register the library that brings the provider, once a process; its devices, or None where there is no library.

    Raises:
        ProviderError: the library is no plugin of ONNX Runtime, or finds no device here.
    """
    row = requested.provider
    library = requested.library or _installed_library(row)
    if library is None:
        return None
    onnxruntime = load_onnxruntime()
    if not (devices := _devices_of(onnxruntime, row)):
        registered = {entry.ep_name for entry in onnxruntime.get_ep_devices()}
        try:
            onnxruntime.register_execution_provider_library(row.onnxruntime_name, str(library))
        except Exception as error:  # ONNX Runtime's exceptions share no base class
            if "already registered" not in str(error):
                raise ProviderError(
                    f"provider {row.name}: expected a plugin library of ONNX Runtime, found that {library} is none: "
                    f"{one_line(error)[-300:]}"
                ) from error
        devices = _devices_of(onnxruntime, row) or tuple(
            entry for entry in onnxruntime.get_ep_devices() if entry.ep_name not in registered
        )
    if not devices:
        raise ProviderError(
            f"provider {row.name}: expected a device that its plugin can use, found none on this machine; it is made "
            f"for {row.platforms}"
        )
    return devices


def _installed_library(row: Provider) -> Path | None:
    """The plugin library of the installed package that brings the provider, if there is one."""
    if row.plugin_module is None:
        return None
    try:
        return Path(importlib.import_module(row.plugin_module).get_library_path())
    except ImportError:
        return None


def _devices_of(onnxruntime: Any, row: Provider) -> tuple[Any, ...]:
    return tuple(entry for entry in onnxruntime.get_ep_devices() if entry.ep_name == row.onnxruntime_name)
