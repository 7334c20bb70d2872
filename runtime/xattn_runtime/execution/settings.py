"""The settings that a bundle runs with: its provider by name, its threads, and what `xattn-edge tune` wrote for it.

`auto` and `arm` name no provider: `verify.golden.chosen_settings` replaces them by the one that proves itself.
"""

from __future__ import annotations

import os
from dataclasses import replace

from xattn_runtime.arguments import text, whole_number
from xattn_runtime.bundle.folder import Bundle
from xattn_runtime.errors import ProviderError
from xattn_runtime.execution.device_profile import read_device_profile
from xattn_runtime.execution.providers import RESOLVED_ON_DEVICE, RequestedProvider, parse_provider, require_available
from xattn_runtime.execution.session import SessionSettings, default_threads

__all__ = ["checked_threads", "session_settings", "tuned_settings"]

# Each session has as many of its own, and a process that the system gives no more threads is aborted.
_MOST_THREADS = 64


def session_settings(
    provider: str | SessionSettings, threads: int | None, bundle: Bundle | None = None
) -> SessionSettings:
    """Checked settings; `SessionSettings` are returned as they are.

    provider: a name that `parse_provider` reads.
    threads: within an operator; without them, what `xattn-edge tune` wrote for `bundle` on this machine, else the
        cores, at most 4.
    Raises ProviderError for a provider that is not installed, a number of threads that `checked_threads` refuses, and
    `auto` or `arm`.
    """
    if isinstance(provider, SessionSettings):
        return provider
    checked_threads(threads)
    text("provider", provider, error=ProviderError)
    if provider in RESOLVED_ON_DEVICE:
        raise ProviderError(
            f"provider: expected the name of one provider, found {provider}, which chooses among them; open the bundle "
            "with `xattn_runtime.load`"
        )
    requested = parse_provider(provider)
    require_available(requested)
    return tuned_settings(requested, threads, bundle)


def tuned_settings(requested: RequestedProvider, threads: int | None, bundle: Bundle | None) -> SessionSettings:
    """Settings for a provider that is installed; without `threads`, as `xattn-edge tune` wrote for `bundle`."""
    settings = SessionSettings(requested.provider, checked_threads(threads), requested.fallback, requested.library)
    if threads is not None or bundle is None:
        return settings
    path = bundle.path.absolute()
    tuned = read_device_profile(path, settings.name)
    return settings if tuned is None else replace(settings, threads=tuned.threads, tuning=tuned.tuning_of(path))


def checked_threads(threads: int | None) -> int:
    """`threads`, or by default the cores, at most 4; ProviderError below 1, and above what any device has use for."""
    most = max(_MOST_THREADS, os.cpu_count() or 1)
    if threads is None:
        return default_threads()
    advice = "leave it out for one a core, at most 4"
    return whole_number("threads", threads, 1, most, advice=advice, error=ProviderError)
