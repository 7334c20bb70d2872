"""Which version of the distribution is installed."""

from __future__ import annotations

__all__ = ["installed_version"]


def installed_version() -> str:
    """The version of `xattn-edge`, or `0+unknown` where it runs without being installed."""
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("xattn-edge")
    except PackageNotFoundError:
        return "0+unknown"
