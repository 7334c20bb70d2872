"""Finds what a bundle runs best with on this device, and never takes what is slower than the defaults.

All candidates take turns; the best of them then has to beat the defaults in several pairs of new processes, by more
than these pairs differ among themselves. Last, graphs as ONNX Runtime has optimized them meet the bundle's own.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from xattn_runtime.bundle.folder import Bundle, open_bundle
from xattn_runtime.errors import UserError, XattnError
from xattn_runtime.execution.device_profile import DeviceProfile
from xattn_runtime.execution.machine import describe_machine
from xattn_runtime.execution.providers import CPU
from xattn_runtime.execution.session import default_threads
from xattn_runtime.profiling.document import Profile
from xattn_runtime.profiling.matrix import ProfileOptions, profile_combinations
from xattn_runtime.profiling.measure.estimates import Shift, ratio_shift
from xattn_runtime.profiling.optimized import OptimizedVerdict, try_optimized
from xattn_runtime.profiling.worker_process import ProfileCombination
from xattn_runtime.progress import Progress, silent

__all__ = ["Candidate", "Goal", "Tuned", "tune_bundle"]

Goal = Literal["latency", "throughput", "memory", "energy"]
_THROUGHPUT_BATCH = 4
# How often the best meets the defaults, each time in new processes: two of the same differ, which one cannot show.
_MEETINGS = 5
# What gains less is not worth a file; and for memory or energy, what takes more time than this share is slower.
_LEAST_GAIN, _AS_FAST = 0.01, 0.01
_FIGURES: dict[str, Callable[[Profile], float | None]] = {
    "latency": lambda profile: profile.stages["total"].p50.ms,
    "throughput": lambda profile: profile.stages["total"].p50.ms / profile.batch,
    "memory": lambda profile: profile.peak_bytes,
    "energy": lambda profile: profile.energy_j,
}


@dataclass(frozen=True)
class Candidate:
    """A way to run, its time, and the goal's figure: milliseconds an image, bytes, or joules; the less, the better."""

    bundle: str
    attention: str
    provider: str
    threads: int
    spinning: bool
    arena: bool
    total_ms: float
    figure: float


@dataclass(frozen=True)
class Tuned:
    """candidates: the best first. default: what runs without tuning. chosen: None where nothing surely beats it.

    bundle: which one to take, and for which `chosen` holds. optimized: what came of optimized graphs, None where they
    were not tried.
    """

    goal: Goal
    bundle: str
    candidates: tuple[Candidate, ...]
    default: Candidate
    chosen: DeviceProfile | None
    optimized: OptimizedVerdict | None = None


def tune_bundle(
    bundle: str | os.PathLike[str],
    goal: Goal = "latency",
    providers: Sequence[str] = ("cpu",),
    time_budget_s: float = 60.0,
    progress: Progress = silent,
    also: Sequence[str | os.PathLike[str]] = (),
    optimize_into: Path | None = None,
) -> Tuned:
    """Measure threads, spinning and the arena on every provider, and confirm the best against the defaults.

    Args:
        also: the same model in another attention form.
        optimize_into: an empty folder in which to try graphs as ONNX Runtime's CPU provider optimizes them.

    Raises:
        UserError: an unknown goal, no provider, energy where nothing counts it, or another model among `also`.
        BundleError: a bundle cannot be used.
        XattnError: the defaults could not be measured.
    """
    if goal not in _FIGURES:
        raise UserError(f"--goal: expected one of {', '.join(_FIGURES)}, found {goal}")
    if not providers:
        raise UserError("--provider: expected at least one, found none")
    if not 0 < time_budget_s < math.inf:
        raise UserError(f"time budget: expected a finite number above 0, found {time_budget_s:g}")
    forms = _forms([bundle, *also])
    plain = ProfileCombination(next(iter(forms)), providers[0], default_threads(), 1)
    combinations = _combinations(plain, forms, providers)
    options = ProfileOptions(time_budget_s=0.6 * time_budget_s, nodes=False)
    profiles = _measured(combinations, goal, options, lambda text, share: progress(text, 0.6 * share))
    if plain not in profiles:
        raise XattnError(
            f"{plain.bundle}: expected to measure the defaults on {plain.provider}, found that they failed"
        )
    ranked = sorted(
        ((_candidate(one, profile, goal, forms), one) for one, profile in profiles.items()),
        key=lambda pair: pair[0].figure,
    )
    best, default = ranked[0][1], _candidate(plain, profiles[plain], goal, forms)
    chosen = None
    if best != plain:
        options = replace(options, time_budget_s=0.25 * time_budget_s / _MEETINGS)
        meetings = []
        for number in range(_MEETINGS):
            progress("the best against the defaults", 0.6 + 0.25 * number / _MEETINGS)
            meetings.append(_measured([plain, best], goal, options, silent))
        chosen = _confirmed(plain, best, meetings, goal)
    taken = plain if chosen is None else best
    verdict = None
    if optimize_into is not None and taken.provider == CPU.name:
        verdict = try_optimized(
            taken,
            optimize_into,
            0.15 * time_budget_s,
            lambda share: progress("optimized graphs", 0.85 + 0.15 * share),
            memory=goal == "memory",
        )
        chosen = _with_graphs(chosen, taken, verdict, goal)
    return Tuned(goal, taken.bundle, tuple(candidate for candidate, _ in ranked), default, chosen, verdict)


def _forms(bundles: Sequence[str | os.PathLike[str]]) -> dict[str, str]:
    """Bundle → its attention form; UserError where they are not one model in the same precisions."""
    opened = [open_bundle(bundle) for bundle in bundles]
    for other in opened[1:]:
        if _kind(other) != _kind(opened[0]) or not _same_precisions(other, opened[0]):
            raise UserError(
                f"--also: expected the model of {opened[0].path} in another attention form and the same precisions, "
                f"found that {other.path} is not; compare other models by xattn-edge profile"
            )
    return {os.fspath(one.path): one.manifest.attention for one in opened}


def _kind(bundle: Bundle) -> tuple[object, ...]:
    manifest = bundle.manifest
    tokenizer = manifest.files[manifest.tokenizer.file].sha256
    return manifest.task, manifest.image_steps, manifest.labels, manifest.decoding, tokenizer


def _same_precisions(one: Bundle, other: Bundle) -> bool:
    """Of the graphs that both have: low opsets leave out some of the whole model."""
    graphs = one.manifest.graphs
    return all(
        graphs[role].precision == graph.precision for role, graph in other.manifest.graphs.items() if role in graphs
    )


def _combinations(
    plain: ProfileCombination, forms: Iterable[str], providers: Sequence[str]
) -> list[ProfileCombination]:
    counts = {1, plain.threads or 1, describe_machine().cores}
    counts |= {2**power for power in range(1, 4) if 2**power <= describe_machine().cores}
    return [
        replace(plain, bundle=bundle, provider=provider, threads=count, spinning=spinning, arena=arena)
        for bundle in forms
        for provider in providers
        for count in sorted(counts)
        for spinning in ((True, False) if count > 1 else (True,))
        for arena in (True, False)
    ]


def _measured(
    combinations: Sequence[ProfileCombination], goal: Goal, options: ProfileOptions, progress: Progress
) -> dict[ProfileCombination, Profile]:
    """By combination as it was asked for; those that failed are left out."""
    batch = _THROUGHPUT_BATCH if goal == "throughput" else 1
    requested = {replace(one, batch=batch): one for one in combinations}
    profiles, _ = profile_combinations(list(requested), options, progress)
    if batch > 1 and not profiles:  # the task takes one thing at a time
        requested = {one: one for one in combinations}
        profiles, _ = profile_combinations(list(requested), options, progress)
    if goal == "energy" and any(profile.energy_j is None for profile in profiles.values()):
        raise UserError("--goal energy: expected a counter of energy, found none here; choose latency or memory")
    return {requested[one]: profile for one, profile in profiles.items()}


def _candidate(combination: ProfileCombination, profile: Profile, goal: Goal, forms: Mapping[str, str]) -> Candidate:
    figure = _FIGURES[goal](profile)
    return Candidate(
        combination.bundle,
        forms[combination.bundle],
        combination.provider,
        profile.threads,
        combination.spinning,
        combination.arena,
        profile.stages["total"].p50.ms,
        math.inf if figure is None else figure,
    )


def _confirmed(
    plain: ProfileCombination,
    best: ProfileCombination,
    meetings: Sequence[Mapping[ProfileCombination, Profile]],
    goal: Goal,
) -> DeviceProfile | None:
    """The best, if its figure is surely below that of the defaults, and for memory and energy no slower."""
    if not all(one in meeting for meeting in meetings for one in (plain, best)):
        return None

    def shift(of: Goal) -> Shift:
        figures = [[_FIGURES[of](meeting[one]) or math.inf for meeting in meetings] for one in (plain, best)]
        return ratio_shift(*figures)

    gained = shift(goal)
    if gained.high >= 0 or -gained.share < _LEAST_GAIN:
        return None
    if goal in ("memory", "energy"):
        slower = shift("latency")
        if slower.low > 0 or slower.share > _AS_FAST:
            return None
    return _device_profile(replace(best, threads=meetings[0][best].threads), goal, -gained.share)


def _device_profile(one: ProfileCombination, goal: Goal, gain: float) -> DeviceProfile:
    machine, threads = describe_machine(), one.threads or default_threads()
    return DeviceProfile(machine.cpu, machine.cores, one.provider, threads, one.spinning, one.arena, goal, gain)


def _with_graphs(
    chosen: DeviceProfile | None, taken: ProfileCombination, verdict: OptimizedVerdict, goal: Goal
) -> DeviceProfile | None:
    if verdict.taken is None:
        return chosen
    profile = _device_profile(taken, goal, 0.0) if chosen is None else chosen
    return replace(profile, optimized=verdict.taken, load_gain=verdict.load_gain)
