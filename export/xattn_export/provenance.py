"""When a bundle was made and with what: the part of the manifest that is not about the model."""

from __future__ import annotations

import os
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version

import xattn_runtime
from xattn_runtime.errors import UserError

__all__ = ["created_utc", "versions"]

_PACKAGES = ("numpy", "onnx", "onnxruntime", "onnxscript", "torch")


def created_utc() -> str:
    """Now, or the moment that SOURCE_DATE_EPOCH names (https://reproducible-builds.org/specs/source-date-epoch/).

    Raises:
        UserError: SOURCE_DATE_EPOCH is not a number of seconds.
    """
    epoch = os.environ.get("SOURCE_DATE_EPOCH")
    try:
        moment = datetime.now(UTC) if epoch is None else datetime.fromtimestamp(int(epoch), UTC)
    except (ValueError, OverflowError, OSError) as error:
        raise UserError(f"SOURCE_DATE_EPOCH: expected seconds since 1970, found {epoch!r}") from error
    return moment.strftime("%Y-%m-%dT%H:%M:%SZ")


def versions() -> dict[str, str]:
    """Package → version, of those that made the bundle and are installed under that name."""
    found = {"xattn-edge": xattn_runtime.__version__}
    for package in _PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found
