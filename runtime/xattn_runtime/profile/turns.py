"""One turn: passes for some time, and beside them the reference work, summed up as the rounds are compared."""

from __future__ import annotations

import time
from collections.abc import Callable
from statistics import fmean
from typing import Any

from xattn_runtime.profile.estimates import fast
from xattn_runtime.profile.passes import Passes, Times
from xattn_runtime.profile.reference import Reference

__all__ = ["take_turn"]


def take_turn(
    passes: Passes, reference: Reference, seconds: float, most: int, joules: Callable[[], float] | None = None
) -> dict[str, Any]:
    """Passes for so many seconds, at most `most`, at least one.

    Returns:
        `passes`; `times` of all stages, ms; `fast`, for each stage the mean over the pictures of the fastest decile;
        `reference_ms`, that of the reference; `cpu_ms`; `energy_j`, None without `joules`.
    """
    times: Times = {}
    by_picture: dict[str, dict[int, list[float]]] = {}
    # Before and after, not between: neither its time nor its energy is the bundle's.
    reference_ms = reference.measure()
    done, began = 0, time.perf_counter()
    cpu, energy = time.process_time(), joules() if joules else 0.0
    while done == 0 or (done < most and time.perf_counter() - began < seconds):
        picture = passes.next_picture
        for stage, measured in passes.run().items():
            times.setdefault(stage, []).extend(measured)
            by_picture.setdefault(stage, {}).setdefault(picture, []).append(fmean(measured))
        done += 1
    cpu_ms = 1000 * (time.process_time() - cpu)
    energy_j = joules() - energy if joules else None
    return {
        "passes": done,
        "times": times,
        "fast": {stage: fmean(map(fast, found.values())) for stage, found in by_picture.items()},
        "reference_ms": fast(reference_ms + reference.measure()),
        "cpu_ms": cpu_ms,
        "energy_j": energy_j,
    }
