from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.support.slow import slow_after
from xattn_runtime.errors import OutputError, UserError
from xattn_runtime.execution.device_profile import (
    DeviceProfile,
    OptimizedGraphs,
    device_profile_path,
    read_device_profile,
    write_device_profile,
)
from xattn_runtime.execution.machine import describe_machine
from xattn_runtime.loader import load
from xattn_runtime.profiling import tune as tuning
from xattn_runtime.profiling.document import Profile
from xattn_runtime.profiling.measure.estimates import summarise
from xattn_runtime.profiling.optimized import OptimizedVerdict
from xattn_runtime.profiling.tune import tune_bundle
from xattn_runtime.profiling.worker_process import ProfileCombination


def found(profile_of: Any) -> Any:
    """Stands for measuring: `profile_of` says a combination's time and memory."""

    def measure(
        combinations: list[ProfileCombination], *rest: object
    ) -> tuple[dict[ProfileCombination, Profile], list[object]]:
        return {one: made(one, *profile_of(one)) for one in combinations if profile_of(one)}, []

    return measure


def made(one: ProfileCombination, total_ms: float, peak: int, energy_j: float | None = None) -> Profile:
    times = [total_ms * (1 + 0.001 * (step % 3)) for step in range(9)]
    values: dict[str, Any] = dict.fromkeys(Profile.__dataclass_fields__, None)
    values |= {"stages": {"total": summarise(times)}, "rounds": {"total": times}, "peak_bytes": peak}
    values |= {"threads": one.threads or 1, "batch": one.batch, "energy_j": energy_j}
    return Profile(**values)


def test_the_best_is_confirmed_and_obeyed(
    caption_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = tmp_path / "copy.xattn"
    bundle.symlink_to(caption_bundle)
    times = found(lambda one: (10.0 if one.arena else 6.0 + (one.threads or 1), 1000))
    monkeypatch.setattr(tuning, "profile_combinations", times)
    tuned = tune_bundle(bundle)
    assert tuned.chosen is not None
    assert (tuned.chosen.threads, tuned.chosen.arena) == (1, False)
    assert tuned.chosen.gain == pytest.approx(0.3)
    assert [one.figure for one in tuned.candidates] == sorted(one.figure for one in tuned.candidates)
    write_device_profile(bundle, tuned.chosen)
    settings = load(bundle).settings
    assert (settings.threads, settings.tuning.arena, settings.tuning.spinning) == (1, False, tuned.chosen.spinning)
    assert load(bundle, threads=2).settings.tuning.arena


def test_the_other_attention_form(
    caption_bundle: Path, caption_copy: Path, rewrite: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    manifest = load(caption_copy).bundle.manifest
    rewrite(caption_copy, replace(manifest, attention="standard", opset=23))
    faster = str(caption_copy)
    monkeypatch.setattr(tuning, "profile_combinations", found(lambda one: (6.0 if one.bundle == faster else 10.0, 1)))
    tuned = tune_bundle(caption_bundle, also=[caption_copy])
    assert tuned.bundle == faster
    assert tuned.chosen is not None
    assert {one.attention for one in tuned.candidates} == {"decomposed", "standard"}
    assert (tuned.default.bundle, tuned.default.attention) == (str(caption_bundle), "decomposed")
    monkeypatch.setattr(tuning, "profile_combinations", found(lambda one: (9.0 if one.bundle == faster else 8.0, 1)))
    tuned = tune_bundle(caption_bundle, also=[caption_copy])
    assert (tuned.bundle, tuned.chosen) == (str(caption_bundle), None)


def test_optimized_graphs_alone_are_worth_a_profile(
    caption_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    verdict = OptimizedVerdict(10.0, 5.0, 7, 0.5, OptimizedGraphs("0", "1", {}), "")
    monkeypatch.setattr(tuning, "profile_combinations", found(lambda one: (10.0, 1000)))
    monkeypatch.setattr(tuning, "try_optimized", lambda *arguments, **options: verdict)
    tuned = tune_bundle(caption_bundle, optimize_into=tmp_path)
    assert tuned.chosen is not None
    assert (tuned.chosen.gain, tuned.chosen.load_gain, tuned.chosen.arena) == (0.0, 0.5, True)
    assert tuned.chosen.optimized == verdict.taken
    monkeypatch.setattr(tuning, "try_optimized", lambda *arguments, **options: replace(verdict, taken=None))
    assert tune_bundle(caption_bundle, optimize_into=tmp_path).chosen is None


def test_what_is_not_surely_faster_is_not_taken(caption_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []

    def measure(combinations: list[ProfileCombination], *rest: object) -> Any:
        calls.append(len(combinations))
        # Another is faster by chance, and no longer when the two are measured again.
        faster = 9.0 if len(calls) == 1 else 10.0
        return {one: made(one, 10.0 if one.arena else faster, 1000) for one in combinations}, []

    monkeypatch.setattr(tuning, "profile_combinations", measure)
    assert tune_bundle(caption_bundle).chosen is None
    assert set(calls[1:]) == {2}


@pytest.mark.parametrize(
    ("gain", "spread", "most", "least"),
    slow_after(2, [(0.0, 0.03, 0.05, 0), (0.2, 0.03, 1, 0.95), (0.02, 0.03, 0.3, 0)]),
)
def test_a_choice_gains_more_than_processes_differ(
    gain: float, spread: float, most: float, least: float, caption_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    generator = np.random.default_rng(8)

    def measure(combinations: list[ProfileCombination], *rest: object) -> Any:
        times = {one: 10.0 * generator.lognormal(0, spread) * (1.0 if one.arena else 1 - gain) for one in combinations}
        return {one: made(one, total_ms, 1000) for one, total_ms in times.items()}, []

    monkeypatch.setattr(tuning, "profile_combinations", measure)
    tuned = [tune_bundle(caption_bundle) for _ in range(300)]
    taken = sum(one.chosen is not None for one in tuned) / len(tuned)
    assert least <= taken <= most
    assert all(one.chosen.gain >= 0.01 for one in tuned if one.chosen is not None)


@pytest.mark.parametrize("goal", ["latency", "memory"])
def test_what_gains_next_to_nothing_is_not_taken(
    goal: Any, caption_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    little = found(lambda one: (10.0 if one.arena else 9.95, 1000 if one.arena else 999))
    monkeypatch.setattr(tuning, "profile_combinations", little)
    assert tune_bundle(caption_bundle, goal).chosen is None


def test_a_best_that_fails_when_it_is_confirmed(caption_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []

    def measure(combinations: list[ProfileCombination], *rest: object) -> Any:
        calls.append(len(combinations))
        able = [one for one in combinations if one.arena or len(calls) < 4]
        return {one: made(one, 10.0 if one.arena else 5.0, 1000) for one in able}, []

    monkeypatch.setattr(tuning, "profile_combinations", measure)
    assert tune_bundle(caption_bundle).chosen is None


def test_less_memory_but_not_slower(caption_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tuning, "profile_combinations", found(lambda one: (10.0, 1000 if one.arena else 800)))
    chosen = tune_bundle(caption_bundle, "memory").chosen
    assert chosen is not None
    assert chosen.gain == pytest.approx(0.2)
    monkeypatch.setattr(tuning, "profile_combinations", found(lambda one: (10.0, 1000) if one.arena else (12.0, 800)))
    assert tune_bundle(caption_bundle, "memory").chosen is None


def test_goals_that_cannot_be(caption_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tuning, "profile_combinations", found(lambda one: (10.0, 1000)))
    with pytest.raises(UserError, match="--goal energy: expected a counter of energy, found none here"):
        tune_bundle(caption_bundle, "energy")
    with pytest.raises(UserError, match="--goal: expected one of latency"):
        tune_bundle(caption_bundle, "beauty")  # type: ignore[arg-type]


def test_of_another_machine_or_broken(tmp_path: Path) -> None:
    bundle, machine = tmp_path / "a.xattn", describe_machine()
    mine = DeviceProfile(machine.cpu, machine.cores, "cpu", 1, spinning=True, arena=True, goal="latency", gain=0.1)
    assert read_device_profile(bundle, "cpu") is None
    write_device_profile(bundle, mine)
    assert read_device_profile(bundle, "cpu") == mine
    assert read_device_profile(bundle, "cuda") is None
    write_device_profile(bundle, replace(mine, cores=machine.cores + 1))
    assert read_device_profile(bundle, "cpu") is None
    path = device_profile_path(bundle)
    for text in ("{", "[]", '{"schema": "xattn-edge/device/1"}', json.dumps({**vars(mine), "schema": "x"})):
        path.write_text(text)
        assert read_device_profile(bundle, "cpu") is None
    with pytest.raises(OutputError, match="expected a place to write to"):
        write_device_profile(tmp_path / "none" / "a.xattn", mine)
