"""The distributions of ONNX Runtime that are installed: its builds, which share one module, and its plugins."""

from __future__ import annotations

from dataclasses import dataclass
from importlib import metadata

__all__ = ["PackageConflict", "conflict_over", "onnxruntime_versions", "package_conflict"]

_MODULE_FILE = "onnxruntime/__init__.py"


@dataclass(frozen=True)
class PackageConflict:
    """Distributions that have written the one module `onnxruntime` over each other, and the command that repairs it."""

    distributions: tuple[str, ...]
    fix_command: str

    def __str__(self) -> str:
        return f"{' and '.join(self.distributions)} have written the module onnxruntime over each other"


def package_conflict() -> PackageConflict | None:
    """More than one distribution that owns the module `onnxruntime`: files of one lie over files of the other."""
    owners = tuple(sorted(name for name, owns in _onnxruntime_distributions() if owns))
    if len(owners) < 2:
        return None
    remaining = next((name for name in owners if name != "onnxruntime"), owners[0])
    return PackageConflict(owners, f"pip uninstall -y {' '.join(owners)} && pip install {remaining}")


def conflict_over(package: str | None) -> PackageConflict | None:
    """The conflict that `package` has a part in, if there is one."""
    conflict = package_conflict()
    return conflict if conflict is not None and package in conflict.distributions else None


def onnxruntime_versions() -> dict[str, str]:
    """Distribution → version, of every build and plugin."""
    return {name: metadata.version(name) for name, _ in sorted(_onnxruntime_distributions())}


def _onnxruntime_distributions() -> set[tuple[str, bool]]:
    """Installed distributions called onnxruntime…, and whether each of them owns the module of that name."""
    installed = set()
    for distribution in metadata.distributions():
        name = (distribution.metadata["Name"] or "").lower().replace("_", "-")
        if name == "onnxruntime" or name.startswith("onnxruntime-"):
            files = distribution.files or ()
            installed.add((name, any(str(file) == _MODULE_FILE for file in files)))
    return installed
