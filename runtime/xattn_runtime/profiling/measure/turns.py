"""One turn: passes for some time, and beside them the reference work, summed up as the rounds are compared."""

from __future__ import annotations

import time
from collections.abc import Callable
from statistics import fmean, median
from typing import Any

from xattn_runtime.profiling.measure.passes import Passes
from xattn_runtime.profiling.measure.reference import Reference, typical_ms
from xattn_runtime.tasks import Times

__all__ = ["take_turn"]

# By how much longer than asked for a turn may be for every input to have had its pass as often.
_STRETCH = 4


def take_turn(
    passes: Passes, reference: Reference, seconds: float, most: int, joules: Callable[[], float] | None = None
) -> dict[str, Any]:
    """Passes for so many seconds, at most `most`, at least one; and, if that is soon, until all inputs had as many.

    Returns:
        `passes`; `times` of all stages, ms; `typical`, for each stage the mean over the images of the median;
        `reference_ms`, that of the reference; `cpu_ms`; `energy_j`, None without `joules`.
    """
    times: Times = {}
    by_image: dict[str, dict[int, list[float]]] = {}
    # Before and after, not between: neither its time nor its energy is the bundle's.
    before = reference.measure()
    first, done, began = passes.next_image, 0, time.perf_counter()
    cpu, energy = time.process_time(), joules() if joules else 0.0

    def is_over() -> bool:
        elapsed = time.perf_counter() - began
        return done >= most or elapsed >= (seconds if passes.next_image == first else _STRETCH * seconds)

    while done == 0 or not is_over():
        image = passes.next_image
        for stage, measured in passes.run().items():
            times.setdefault(stage, []).extend(measured)
            by_image.setdefault(stage, {}).setdefault(image, []).append(fmean(measured))
        done += 1
    cpu_ms = 1000 * (time.process_time() - cpu)
    energy_j = joules() - energy if joules else None
    return {
        "passes": done,
        "times": times,
        "typical": {stage: fmean(map(median, values.values())) for stage, values in by_image.items()},
        "reference_ms": typical_ms(before, reference.measure()),
        "cpu_ms": cpu_ms,
        "energy_j": energy_j,
    }
