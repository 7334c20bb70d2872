"""When a bundle was made and with what: the part of the manifest that is not about the model."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from xattn_runtime.bundle.folder import file_digest
from xattn_runtime.errors import UserError
from xattn_runtime.version import installed_version

__all__ = ["created_utc", "versions", "weights_digest"]

_PACKAGES = ("numpy", "onnx", "onnxruntime", "onnxscript", "torch", "transformers")


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
    versions_by_package = {"xattn-edge": installed_version()}
    for package in _PACKAGES:
        try:
            versions_by_package[package] = version(package)
        except PackageNotFoundError:
            continue
    return versions_by_package


def weights_digest(files: Sequence[Path]) -> str:
    """SHA-256 of the one weight file; of several, that of what `sha256sum` prints for them, in the order of names."""
    if len(files) == 1:
        return file_digest(files[0])
    lines = (f"{file_digest(path)}  {path.name}\n" for path in sorted(files))
    return hashlib.sha256("".join(lines).encode()).hexdigest()
