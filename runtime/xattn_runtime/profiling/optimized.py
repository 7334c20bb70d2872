"""Whether graphs that ONNX Runtime has optimized once load surely faster here than the bundle's own, and run no slower.

Two processes take turns, one with each kind; what they load has been verified by the bundle's golden inputs.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median

from xattn_runtime.bundle.folder import MANIFEST_FILE, file_digest
from xattn_runtime.errors import XattnError
from xattn_runtime.execution.device_profile import OptimizedGraphs, digests_of
from xattn_runtime.execution.providers import load_onnxruntime
from xattn_runtime.profiling.measure.estimates import turns_shift
from xattn_runtime.profiling.worker_process import ProfileCombination, WorkerProcess

__all__ = ["OptimizedVerdict", "try_optimized"]

_FEWEST_ROUNDS, _MOST_ROUNDS = 6, 40
_TURN_SECONDS = 0.25
_TIME_LIMIT_S = 300.0
# What takes more time than this share is slower, whether that is certain or not.
_AS_FAST = 0.02


@dataclass(frozen=True)
class OptimizedVerdict:
    """load_ms, optimized_load_ms: medians. bytes: of the optimized graphs. taken: None where they are not better.

    load_gain: the share by which they load faster. because: why they are not taken, "" where they are.
    """

    load_ms: float | None
    optimized_load_ms: float | None
    bytes: int
    load_gain: float
    taken: OptimizedGraphs | None
    because: str


@dataclass
class _Timed:
    worker: WorkerProcess
    loads_ms: list[float]
    totals_ms: list[float]


def try_optimized(
    combination: ProfileCombination,
    folder: Path,
    time_budget_s: float,
    progress: Callable[[float], None],
    *,
    memory: bool = False,
) -> OptimizedVerdict:
    """Write the graphs of `combination` into the empty `folder`, and compare. memory: whether they may take no more."""
    workers: list[WorkerProcess] = []

    def start(one: ProfileCombination) -> _Timed:
        workers.append(WorkerProcess(one, (), _TIME_LIMIT_S))
        return _Timed(workers[-1], [], [])

    try:
        plain = start(combination)
        plain.worker.order("optimize", folder=str(folder))
        optimized = start(replace(combination, optimized=str(folder)))
        _take_turns((plain, optimized), time_budget_s, progress)
        peaks = [side.worker.order("memory")["peak_bytes"] for side in (plain, optimized)]
    except XattnError as error:
        return OptimizedVerdict(None, None, 0, 0.0, None, str(error))
    finally:
        for worker in workers:
            worker.end()
    because, gain = _judged(plain, optimized, peaks if memory else None)
    manifest = Path(combination.bundle) / MANIFEST_FILE
    graphs = OptimizedGraphs(file_digest(manifest), load_onnxruntime().__version__, digests_of(folder))
    return OptimizedVerdict(
        median(plain.loads_ms),
        median(optimized.loads_ms),
        sum(path.stat().st_size for path in folder.iterdir()),
        gain,
        None if because else graphs,
        because,
    )


def _take_turns(sides: tuple[_Timed, _Timed], time_budget_s: float, progress: Callable[[float], None]) -> None:
    for side in sides:
        side.worker.order("warm")
    began = time.perf_counter()
    for number in range(_MOST_ROUNDS):
        elapsed = time.perf_counter() - began
        if number >= _FEWEST_ROUNDS and elapsed > time_budget_s:
            return
        progress(min(1.0, elapsed / time_budget_s))
        for side in sides if number % 2 else sides[::-1]:
            side.loads_ms.append(side.worker.order("load"))
            turn = side.worker.order("turn", seconds=_TURN_SECONDS, passes=10**9)
            side.totals_ms.append(median(turn["times"]["total"]))


def _judged(plain: _Timed, optimized: _Timed, peaks: list[int | None] | None) -> tuple[str, float]:
    """Why they are not better, if so, and the share by which they load faster."""
    loading = turns_shift([plain.loads_ms], [optimized.loads_ms])
    running = turns_shift([plain.totals_ms], [optimized.totals_ms])
    if loading.high >= 0:
        return "they do not surely load faster", -loading.share
    if running.low > 0 or running.share > _AS_FAST:
        return f"they run slower, by {100 * running.share:.1f} %", -loading.share
    if peaks is not None and (peaks[0] or 0) < (peaks[1] or 0):
        return "they take more memory", -loading.share
    return "", -loading.share
