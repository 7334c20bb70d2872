"""What `xattn-edge tune` found best for a bundle on a device: a small file beside the bundle, which loading obeys.

It holds for the machine that it was made on, and where nobody asks for a number of threads. A folder beside it may keep
the bundle's graphs as this machine's ONNX Runtime has optimized them, which spares it that work when it loads them.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from xattn_runtime.brought_files import is_system_file
from xattn_runtime.bundle.contract import ROLES
from xattn_runtime.bundle.folder import MANIFEST_FILE, file_digest
from xattn_runtime.errors import OutputError
from xattn_runtime.execution.loading import SessionTuning
from xattn_runtime.execution.machine import describe_machine
from xattn_runtime.execution.providers import load_onnxruntime

__all__ = [
    "DeviceProfile",
    "OptimizedGraphs",
    "check_device_profile",
    "device_profile_path",
    "digests_of",
    "optimized_graphs_path",
    "read_device_profile",
    "remove_device_profile",
    "write_device_profile",
]

_SCHEMA_NAME = "xattn-edge/device/"
_SCHEMA = f"{_SCHEMA_NAME}1"
_GRAPHS = frozenset(f"{role}.onnx{suffix}" for role in ROLES for suffix in ("", ".data"))


@dataclass(frozen=True)
class OptimizedGraphs:
    """Graphs that ONNX Runtime has optimized for one processor: for this machine alone, and never to be shipped.

    manifest_sha256: of the bundle that they were made from. onnxruntime: the version that made them. files: SHA-256 of
    each file in the folder.
    """

    manifest_sha256: str
    onnxruntime: str
    files: Mapping[str, str]


@dataclass(frozen=True)
class DeviceProfile:
    """cpu, cores: the machine's. provider, threads, spinning, arena: what to run with. goal: what it was chosen for.

    gain: the share by which the goal's figure is below that of the defaults, measured in turns. optimized: graphs to
    load in place of the bundle's own. load_gain: the share by which they load faster.
    """

    cpu: str
    cores: int
    provider: str
    threads: int
    spinning: bool
    arena: bool
    goal: str
    gain: float
    optimized: OptimizedGraphs | None = None
    load_gain: float = 0.0

    def tuning_of(self, bundle: Path) -> SessionTuning:
        """For sessions of `bundle`."""
        folder = None if self.optimized is None else optimized_graphs_path(bundle)
        return SessionTuning(self.spinning, self.arena, optimized=folder)


def device_profile_path(bundle: Path) -> Path:
    """`NAME.xattn.device.json` beside the bundle."""
    return bundle.with_name(f"{bundle.name}.device.json")


def optimized_graphs_path(bundle: Path) -> Path:
    """The folder `NAME.xattn.device` beside the bundle."""
    return bundle.with_name(f"{bundle.name}.device")


def digests_of(folder: Path) -> dict[str, str]:
    """SHA-256 of each file in `folder`; OSError where there is something else in it, such as a link."""
    digests = {}
    for path in sorted(path for path in folder.iterdir() if not is_system_file(path.name)):
        if path.is_symlink() or not path.is_file():
            raise OSError(0, "expected nothing but files", str(path))
        digests[path.name] = file_digest(path)
    return digests


def read_device_profile(bundle: Path, provider: str) -> DeviceProfile | None:
    """What was found for `provider` on this very machine; None where nothing was, or the file cannot be used.

    Its optimized graphs are left out unless this bundle and this version of ONNX Runtime made them and no byte of them
    has changed since.
    """
    try:
        values = json.loads(device_profile_path(bundle).read_bytes())
        if values.pop("schema") != _SCHEMA:
            return None
        optimized = values.pop("optimized", None)
        profile = DeviceProfile(**values)
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return None
    kinds = (str, int, str, int, bool, bool)
    named = (profile.cpu, profile.cores, profile.provider, profile.threads, profile.spinning, profile.arena)
    if not all(isinstance(value, kind) for value, kind in zip(named, kinds, strict=True)) or profile.threads < 1:
        return None
    machine = describe_machine()
    if (profile.cpu, profile.cores, profile.provider) != (machine.cpu, machine.cores, provider):
        return None
    return replace(profile, optimized=_unchanged(bundle, optimized))


def check_device_profile(bundle: Path) -> None:
    """OutputError where no profile can be written for `bundle`, or something else has the place of one."""
    from xattn_runtime.files import check_writable

    path, folder = device_profile_path(bundle), optimized_graphs_path(bundle)
    try:
        if os.path.lexists(path) and not _is_ours(path):
            raise OutputError(f"{path}: expected what `xattn-edge tune` wrote, found another file; move it elsewhere")
        if os.path.lexists(folder) and (strange := _stranger(folder, path)):
            raise OutputError(
                f"{folder}: expected graphs that `xattn-edge tune` wrote, found {strange}; move it elsewhere"
            )
        check_writable(path)
    except OSError as error:
        raise _not_written(path, error) from error


def _is_ours(path: Path) -> bool:
    try:
        values = json.loads(path.read_bytes())
    except ValueError:
        return False
    return isinstance(values, dict) and str(values.get("schema", "")).startswith(_SCHEMA_NAME)


def _stranger(folder: Path, profile: Path) -> str | None:
    """What in the place of the folder of optimized graphs is none of them; None where there is nothing else.

    Without a profile beside it that `tune` wrote, nothing in it is taken for ours.
    """
    if folder.is_symlink() or not folder.is_dir():
        return "no folder"
    ours = _GRAPHS if profile.is_file() else frozenset()
    names = (each.name for each in folder.iterdir() if not is_system_file(each.name))
    return next((name for name in names if name not in ours), None)


def _not_written(path: Path, error: OSError) -> OutputError:
    reason = error.strerror or str(error)
    return OutputError(
        f"{path}: expected a place to write to, found: {reason}; move the bundle, or measure with --dry-run"
    )


def write_device_profile(bundle: Path, profile: DeviceProfile, optimized: Path | None = None) -> Path:
    """Write it whole or not at all, with the graphs in the folder `optimized`; OutputError where that cannot be."""
    from xattn_runtime.files import atomic_folder, atomic_write  # every answer only reads profiles

    path, folder = device_profile_path(bundle), optimized_graphs_path(bundle)
    document = json.dumps({"schema": _SCHEMA, **asdict(profile)}, indent=2) + "\n"
    check_device_profile(bundle)
    try:
        # In between an older profile finds graphs that are gone or are not its own, and does without.
        if profile.optimized is not None and optimized is not None:
            with atomic_folder(folder) as made:
                shutil.copytree(optimized, made, dirs_exist_ok=True)
        elif folder.is_dir() and not folder.is_symlink():
            shutil.rmtree(folder)
        atomic_write(path, document)
    except OSError as error:
        raise _not_written(path, error) from error
    return path


def remove_device_profile(bundle: Path) -> bool:
    """Remove it and its graphs; whether there was one. OutputError where it cannot be removed."""
    path, folder = device_profile_path(bundle), optimized_graphs_path(bundle)
    existed = path.is_file()
    if not existed and not folder.is_dir():
        return False
    check_device_profile(bundle)
    try:
        path.unlink(missing_ok=True)
        if folder.is_dir() and not folder.is_symlink():
            shutil.rmtree(folder)
    except OSError as error:
        raise OutputError(f"{path}: expected to remove it, found: {error.strerror}; remove it by hand") from error
    return existed


def _unchanged(bundle: Path, recorded: Any) -> OptimizedGraphs | None:
    folder = optimized_graphs_path(bundle)
    try:
        known = OptimizedGraphs(**recorded)
        same_onnxruntime = known.onnxruntime == load_onnxruntime().__version__
        same_manifest = same_onnxruntime and known.manifest_sha256 == file_digest(bundle / MANIFEST_FILE)
        same = same_manifest and not folder.is_symlink() and known.files == digests_of(folder)
    except (OSError, TypeError):
        return None
    return known if same else None
