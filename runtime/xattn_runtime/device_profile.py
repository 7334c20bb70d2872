"""What `xattn-edge tune` found best for a bundle on a device: a small file beside the bundle, which loading obeys.

It holds for the machine that it was made on, and where nobody asks for a number of threads.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

from xattn_runtime.errors import OutputError
from xattn_runtime.loading import SessionTuning
from xattn_runtime.machine import describe_machine

__all__ = ["DeviceProfile", "device_profile_path", "read_device_profile", "write_device_profile"]

_SCHEMA = "xattn-edge/device/1"


@dataclass(frozen=True)
class DeviceProfile:
    """cpu, cores: the machine's. provider, threads, spinning, arena: what to run with. goal: what it was chosen for.

    gain: the share by which the goal's figure is below that of the defaults, measured in turns.
    """

    cpu: str
    cores: int
    provider: str
    threads: int
    spinning: bool
    arena: bool
    goal: str
    gain: float

    @property
    def tuning(self) -> SessionTuning:
        """For sessions."""
        return SessionTuning(self.spinning, self.arena)


def device_profile_path(bundle: Path) -> Path:
    """`NAME.xattn.device.json` beside the bundle."""
    return bundle.with_name(f"{bundle.name}.device.json")


def read_device_profile(bundle: Path, provider: str) -> DeviceProfile | None:
    """What was found for `provider` on this very machine; None where nothing was, or the file cannot be used."""
    try:
        values = json.loads(device_profile_path(bundle).read_text(encoding="utf-8"))
        if values.pop("schema") != _SCHEMA:
            return None
        found = DeviceProfile(**values)
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return None
    kinds = (str, int, str, int, bool, bool)
    named = (found.cpu, found.cores, found.provider, found.threads, found.spinning, found.arena)
    if not all(isinstance(value, kind) for value, kind in zip(named, kinds, strict=True)) or found.threads < 1:
        return None
    machine = describe_machine()
    same = (found.cpu, found.cores, found.provider) == (machine.cpu, machine.cores, provider)
    return found if same else None


def write_device_profile(bundle: Path, profile: DeviceProfile) -> Path:
    """Write it whole or not at all; OutputError where that cannot be."""
    path = device_profile_path(bundle)
    temporary = path.with_name(f".{path.name}.partial")
    try:
        temporary.write_text(json.dumps({"schema": _SCHEMA, **asdict(profile)}, indent=2) + "\n", encoding="utf-8")
        temporary.replace(path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise OutputError(f"{path}: expected a place to write to, found: {error.strerror}; move the bundle") from error
    return path
