"""Records measured quality in a bundle. Nothing else of it changes, and no graph is read."""

from __future__ import annotations

import errno
import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from xattn_export.bundle.provenance import created_utc
from xattn_export.bundle.writer import manifest_document
from xattn_runtime.bundle.calibration import ConfidenceCalibration
from xattn_runtime.bundle.folder import MANIFEST_FILE, open_bundle
from xattn_runtime.bundle.manifest import Manifest
from xattn_runtime.files import atomic_write, check_folder_writable, not_written

__all__ = ["check_recordable", "record_calibration", "record_evaluation"]

_SAME = ("data", "split", "provider")


def check_recordable(bundle: Path) -> None:
    """OutputError where nothing can be recorded in `bundle`, so that nothing is measured in vain.

    A folder that is no bundle is left to who opens it.
    """
    if not bundle.is_dir():
        return
    try:
        check_folder_writable(bundle)
        if not os.access(bundle, os.W_OK | os.X_OK):  # in the bundle itself no stranger may appear
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
    except OSError as error:
        raise not_written(bundle / MANIFEST_FILE, error) from error


def record_evaluation(bundle: Path, record: Mapping[str, Any]) -> None:
    """Add `record` and the date to the manifest's `evaluation`, in place of one of the same data, split and provider.

    Raises:
        BundleError: `bundle` is no bundle, or is damaged.
        OutputError: its manifest cannot be written; it stays as it was.
    """
    opened = open_bundle(bundle)
    manifest = opened.manifest
    others = [old for old in manifest.evaluation if any(old.get(key) != record.get(key) for key in _SAME)]
    evaluation = (*others, {**record, "evaluated_utc": created_utc()})
    _rewrite(opened.path, replace(manifest, evaluation=evaluation))


def record_calibration(bundle: Path, calibration: ConfidenceCalibration) -> None:
    """Make `calibration` the manifest's. Raises as `record_evaluation`."""
    opened = open_bundle(bundle)
    _rewrite(opened.path, replace(opened.manifest, calibration=calibration))


def _rewrite(bundle: Path, manifest: Manifest) -> None:
    target = bundle / MANIFEST_FILE
    try:
        atomic_write(target, manifest_document(manifest), beside=bundle)
    except OSError as error:
        raise not_written(target, error) from error
