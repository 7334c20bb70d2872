"""What the platform counts besides time: energy, temperature, clock. Each may be absent, and then says why.

Linux's own files only: RAPL of Intel and AMD under powercap, the INA3221 of Jetson boards, batteries, thermal zones,
cpufreq.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

__all__ = ["Drift", "EnergyCounter", "find_energy_counter", "read_clock_mhz", "read_temperature_c"]

_SYS = Path("/sys")
_MICRO, _MILLI = 1e-6, 1e-3


@dataclass(frozen=True)
class Drift:
    """Something before and after, None where the platform does not tell."""

    before: float | None
    after: float | None


@dataclass(frozen=True)
class EnergyCounter:
    """Where energy is read.

    source: "rapl", "jetson" or "battery"; None where nothing counts, for the reason `absent`. read: joules since some
    time, in which a power that is only sampled has been multiplied by the time since the last reading.
    """

    source: str | None
    absent: str | None
    read: Callable[[], float] | None


def find_energy_counter(root: Path = _SYS) -> EnergyCounter:
    """The best that this platform has and lets this process read."""
    packages = sorted((root / "class/powercap").glob("*-rapl:[0-9]*"))
    packages = [package for package in packages if package.name.count(":") == 1]
    if packages and all(_number(package / "energy_uj") is not None for package in packages):
        return EnergyCounter("rapl", None, lambda: _MICRO * sum(_number(one / "energy_uj") or 0 for one in packages))
    jetson = sorted(root.glob("bus/i2c/drivers/ina3221/*/hwmon/hwmon*/in1_input"))
    if jetson:
        folder = jetson[0].parent
        return EnergyCounter(
            "jetson", None, _Integral(lambda: _product(folder / "in1_input", folder / "curr1_input", _MILLI))
        )
    for battery in sorted((root / "class/power_supply").glob("BAT*/power_now")):
        if _number(battery) is not None:
            return EnergyCounter("battery", None, _Integral(partial(_microwatts, battery)))
    if packages:
        return EnergyCounter(
            None, f"{packages[0] / 'energy_uj'} cannot be read: ask for the right to, or run as root", None
        )
    return EnergyCounter(None, "the platform has no counter of energy that Linux shows", None)


def read_temperature_c(root: Path = _SYS) -> float | None:
    """The hottest thermal zone, in degrees Celsius."""
    readings = [_number(zone / "temp") for zone in (root / "class/thermal").glob("thermal_zone*")]
    known = [_MILLI * reading for reading in readings if reading is not None]
    return max(known) if known else None


def read_clock_mhz(root: Path = _SYS) -> float | None:
    """The mean clock of the cores, in MHz."""
    readings = [_number(path) for path in (root / "devices/system/cpu").glob("cpu[0-9]*/cpufreq/scaling_cur_freq")]
    known = [reading / 1000 for reading in readings if reading is not None]
    return sum(known) / len(known) if known else None


class _Integral:
    """Joules from a power in watts, taken as constant between readings."""

    def __init__(self, watts: Callable[[], float]) -> None:
        self._watts, self._joules, self._last = watts, 0.0, time.perf_counter()

    def __call__(self) -> float:
        now = time.perf_counter()
        self._joules += self._watts() * (now - self._last)
        self._last = now
        return self._joules


def _product(volts: Path, amperes: Path, unit: float) -> float:
    return unit * (_number(volts) or 0) * unit * (_number(amperes) or 0)


def _microwatts(path: Path) -> float:
    return _MICRO * (_number(path) or 0)


def _number(path: Path) -> float | None:
    try:
        return float(path.read_text())
    except (OSError, ValueError):
        return None
