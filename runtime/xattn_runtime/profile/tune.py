"""Finds what a bundle runs best with on this device, and never takes what is slower than the defaults.

All candidates take turns; the best of them then has to beat the defaults once more, in new processes.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from xattn_runtime.device_profile import DeviceProfile
from xattn_runtime.errors import UserError, XattnError
from xattn_runtime.machine import describe_machine
from xattn_runtime.profile.contestant import Combination
from xattn_runtime.profile.document import Profile
from xattn_runtime.profile.estimates import mean_shift
from xattn_runtime.profile.matrix import ProfileOptions, Progress, profile_combinations
from xattn_runtime.session import default_threads

__all__ = ["Candidate", "Goal", "Tuned", "tune_bundle"]

Goal = Literal["latency", "throughput", "memory", "energy"]
_THROUGHPUT_BATCH = 4
_FIGURES: dict[str, Callable[[Profile], float | None]] = {
    "latency": lambda profile: profile.stages["total"].p50.ms,
    "throughput": lambda profile: profile.stages["total"].p50.ms / profile.batch,
    "memory": lambda profile: profile.peak_bytes,
    "energy": lambda profile: profile.energy_j,
}


@dataclass(frozen=True)
class Candidate:
    """A way to run, its time, and the goal's figure: milliseconds a picture, bytes, or joules; the less, the better."""

    provider: str
    threads: int
    spinning: bool
    arena: bool
    total_ms: float
    figure: float


@dataclass(frozen=True)
class Tuned:
    """candidates: the best first. default: what runs without tuning. chosen: None where nothing surely beats it."""

    goal: Goal
    candidates: tuple[Candidate, ...]
    default: Candidate
    chosen: DeviceProfile | None


def tune_bundle(
    bundle: str | os.PathLike[str],
    goal: Goal = "latency",
    providers: Sequence[str] = ("cpu",),
    time_budget_s: float = 60.0,
    progress: Progress | None = None,
) -> Tuned:
    """Measure threads, spinning and the arena on every provider, and confirm the best against the defaults.

    Raises:
        UserError: an unknown goal, no provider, or energy where nothing counts it.
        XattnError: the defaults could not be measured.
    """
    if goal not in _FIGURES:
        raise UserError(f"--goal: expected one of {', '.join(_FIGURES)}, found {goal}")
    if not providers:
        raise UserError("--provider: expected at least one, found none")
    tell = progress or (lambda text, share: None)
    plain = Combination(os.fspath(bundle), providers[0], default_threads(), 1)
    combinations = _combinations(plain, providers)
    options = ProfileOptions(time_budget_s=2 * time_budget_s / 3, nodes=False)
    profiles = _measured(combinations, goal, options, lambda text, share: tell(text, 0.67 * share))
    if plain not in profiles:
        raise XattnError(
            f"{plain.bundle}: expected to measure the defaults on {plain.provider}, found that they failed"
        )
    ranked = sorted(
        ((_candidate(one, found, goal), one) for one, found in profiles.items()), key=lambda pair: pair[0].figure
    )
    best, default = ranked[0][1], _candidate(plain, profiles[plain], goal)
    chosen = None
    if best != plain:
        options = replace(options, time_budget_s=time_budget_s / 3)
        confirmed = _measured([plain, best], goal, options, lambda text, share: tell(text, 0.67 + 0.33 * share))
        chosen = _confirmed(plain, best, confirmed, goal)
    return Tuned(goal, tuple(candidate for candidate, _ in ranked), default, chosen)


def _combinations(plain: Combination, providers: Sequence[str]) -> list[Combination]:
    counts = {1, plain.threads or 1, describe_machine().cores}
    counts |= {2**power for power in range(1, 4) if 2**power <= describe_machine().cores}
    return [
        replace(plain, provider=provider, threads=count, spinning=spinning, arena=arena)
        for provider in providers
        for count in sorted(counts)
        for spinning in ((True, False) if count > 1 else (True,))
        for arena in (True, False)
    ]


def _measured(
    combinations: Sequence[Combination], goal: Goal, options: ProfileOptions, progress: Progress
) -> dict[Combination, Profile]:
    """By combination as it was asked for; those that failed are left out."""
    batch = _THROUGHPUT_BATCH if goal == "throughput" else 1
    asked = {replace(one, batch=batch): one for one in combinations}
    found, _ = profile_combinations(list(asked), options, progress)
    if batch > 1 and not found:  # the task takes one thing at a time
        asked = {one: one for one in combinations}
        found, _ = profile_combinations(list(asked), options, progress)
    if goal == "energy" and any(profile.energy_j is None for profile in found.values()):
        raise UserError("--goal energy: expected a counter of energy, found none here; choose latency or memory")
    return {asked[one]: profile for one, profile in found.items()}


def _candidate(combination: Combination, profile: Profile, goal: Goal) -> Candidate:
    figure = _FIGURES[goal](profile)
    return Candidate(
        combination.provider,
        profile.threads,
        combination.spinning,
        combination.arena,
        profile.stages["total"].p50.ms,
        float("inf") if figure is None else figure,
    )


def _confirmed(
    plain: Combination, best: Combination, profiles: dict[Combination, Profile], goal: Goal
) -> DeviceProfile | None:
    """The best, if it is surely not slower than the defaults, and for a goal of time surely faster."""
    if plain not in profiles or best not in profiles:
        return None
    before, after = profiles[plain], profiles[best]
    shift = mean_shift(before.rounds["total"], after.rounds["total"])
    if goal in ("latency", "throughput"):
        better, gain = shift.high < 0, -shift.share
    else:
        figures = [_candidate(one, profiles[one], goal).figure for one in (plain, best)]
        better, gain = figures[1] < figures[0] and shift.low <= 0, 1 - figures[1] / figures[0]
    if not better:
        return None
    machine = describe_machine()
    return DeviceProfile(
        machine.cpu, machine.cores, best.provider, after.threads, best.spinning, best.arena, goal, gain
    )
