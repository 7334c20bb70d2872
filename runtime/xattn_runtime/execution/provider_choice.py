"""Which provider `auto` and `arm` mean on this machine, for one bundle: the first that proves itself, and why.

A provider proves itself by running the bundle's heavy nodes and giving its golden outputs.
"""

from __future__ import annotations

import logging
import platform
from collections.abc import Callable

from xattn_runtime.bundle.folder import Bundle
from xattn_runtime.errors import ProviderError, XattnError
from xattn_runtime.execution.providers import CPU, PROVIDERS, Provider, RequestedProvider, require_available

__all__ = ["choose_provider"]

# In the order in which they are tried. What is not here is never chosen without being named: it is slower than the CPU
# provider on these graphs (OpenVINO on a CPU), or takes minutes to start (TensorRT).
_ANYWHERE = ("cuda", "directml", "coreml", "qnn", "webgpu")
_ON_ARM = ("qnn", "xnnpack", "acl")
_ARM = ("aarch64", "arm64", "armv7l", "armv8l")


def choose_provider(name: str, bundle: Bundle, prove: Callable[[RequestedProvider], None]) -> RequestedProvider:
    """The provider for `bundle` that `name`, "auto" or "arm", stands for; the choice and its reasons are logged.

    prove: raises XattnError unless the bundle reproduces its golden outputs on a provider.
    Raises ProviderError for "arm" on another architecture.
    """
    machine = platform.machine()
    if name == "arm" and machine.lower() not in _ARM:
        raise ProviderError(f"provider arm: expected an ARM processor, found {machine}; use --provider auto or cpu")
    absent: list[str] = []
    reasons: list[str] = []
    for candidate in _ON_ARM if name == "arm" else _ANYWHERE:
        row = next(row for row in PROVIDERS if row.name == candidate)
        try:
            require_available(RequestedProvider(row))
        except ProviderError:
            absent.append(row.name)
            continue
        try:
            prove(RequestedProvider(row))
        except XattnError as error:
            reasons.append(f"not {row.name}: {str(error).removeprefix(f'provider {row.name}: ')}")
            continue
        _log(name, row, ["it runs every heavy node and gives the golden outputs", *reasons], bundle)
        return RequestedProvider(row)
    kernels = ["it has kernels for ARM"] if name == "arm" else []
    _log(name, CPU, [*kernels, *reasons, f"not here: {', '.join(absent)}"], bundle)
    return RequestedProvider(CPU)


def _log(name: str, row: Provider, reasons: list[str], bundle: Bundle) -> None:
    text = f"provider {name}: {row.name} for {bundle.manifest.name}: {'; '.join(reasons)}"
    logging.getLogger("xattn_runtime").info(text)
