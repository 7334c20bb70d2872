from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from xattn_runtime.errors import UserError
from xattn_runtime.profiling import SCHEMA, read_document
from xattn_runtime.profiling.measure.estimates import apart_shift, median_interval, ratio_shift, turns_shift
from xattn_runtime.profiling.regression_gate import compare_bundles, compare_documents


def test_shifts() -> None:
    generator = np.random.default_rng(1)
    wrong, found = 0, 0
    for _ in range(400):
        before, noise = generator.lognormal(0, 0.3, 5), generator.lognormal(0, 0.03, 5)
        same = ratio_shift(list(before), list(before * noise))
        wrong += same.low > 0 or same.high < 0
        found += ratio_shift(list(before), list(1.1 * before * noise)).low > 0
    assert wrong <= 0.06 * 400
    assert found >= 0.95 * 400
    assert ratio_shift([1.0, 3.0], [2.0, 6.0]).share == pytest.approx(1.0)
    for old, new in (([1.0], [1.0]), ([1.0, 2.0], [1.0])):
        with pytest.raises(ValueError, match="at least 2 pairs"):
            ratio_shift(old, new)


PROCESSES, ROUNDS = 4, 24


def side_of(
    generator: np.random.Generator, share: float, machine: float, disturbed: np.ndarray, bundle: str = "b"
) -> dict[str, Any]:
    """The profile of a run: on a machine that is slower by `machine`; four processes that differ by 2 % and their
    reference by 1 %; noise of 7 % in which rounds are a little like the one before; and what disturbs all alike."""
    total, reference = [], []
    for _ in range(PROCESSES):
        process, apart, noise = generator.normal(0, 0.02), generator.normal(0, 0.01), 0.0
        for number in range(ROUNDS):
            noise = 0.2 * noise + generator.normal(0, 0.07)
            common = machine + disturbed[number]
            total.append((1 + share) * float(np.exp(common + process + noise)))
            reference.append(float(np.exp(common * generator.normal(1, 0.05) + apart + generator.normal(0, 0.03))))
    return profile_of(total, reference, bundle)


def run_of(generator: np.random.Generator, machine: float, *shares: float) -> list[dict[str, Any]]:
    """Profiles that took turns, on a machine that differs by `machine` from run to run and from round to round."""
    disturbed = generator.normal(0, machine, ROUNDS)
    speed = generator.normal(0, machine)
    return [side_of(generator, share, speed, disturbed, str(place)) for place, share in enumerate(shares)]


def profile_of(
    total_ms: list[float], reference_ms: list[float], bundle: str = "b", processes: int = 4
) -> dict[str, Any]:
    which = {"bundle": bundle, "name": "m", "provider": "cpu", "threads": 1, "batch": 1}
    counts = [len(total_ms) // processes] * processes
    return {**which, "rounds": {"total": total_ms}, "reference_ms": reference_ms, "process_rounds": counts}


def stored(total_ms: list[float], reference_ms: list[float]) -> dict[str, Any]:
    return {"profiles": [profile_of(total_ms, reference_ms, processes=1)]}


def verdict_of(before: dict[str, Any], after: dict[str, Any]) -> str:
    (change,) = compare_documents({"profiles": [before]}, {"profiles": [after]}, 0.05)
    return change.verdict


@pytest.mark.parametrize("machine", [0.0, 0.05, 0.15])
def test_runs_of_the_same_are_the_same_and_a_tenth_is_found(machine: float) -> None:
    generator = np.random.default_rng(4)
    tries = 300
    same = found = 0
    for _ in range(tries):
        (before,), (after, slow) = run_of(generator, machine, 0.0), run_of(generator, machine, 0.0, 0.1)
        same += verdict_of(before, after) == "same"
        found += verdict_of(before, slow) == "worse"
    assert same >= 0.95 * tries
    assert found >= 0.95 * tries


@pytest.mark.parametrize("machine", [0.0, 0.05, 0.15])
def test_so_are_those_that_took_turns(machine: float) -> None:
    generator = np.random.default_rng(6)
    tries = 300
    same = found = 0
    for _ in range(tries):
        before, after, slow = run_of(generator, machine, 0.0, 0.0, 0.1)
        for new, expected in ((after, "same"), (slow, "worse")):
            document = {"profiles": [before, new]}
            (change,) = compare_bundles(document, "0", 0.05)
            same += expected == "same" == change.verdict
            found += expected == "worse" == change.verdict
            assert document["profiles"] == [new]
    assert same >= 0.95 * tries
    assert found >= 0.95 * tries


def test_a_machine_of_half_the_speed_is_no_slower_bundle() -> None:
    generator = np.random.default_rng(5)
    worse = 0
    for _ in range(100):
        (before,), (after,) = run_of(generator, 0.0, 0.0), run_of(generator, 0.0, 0.0)
        after["rounds"]["total"] = [2 * value for value in after["rounds"]["total"]]
        after["reference_ms"] = [2 * value for value in after["reference_ms"]]
        worse += verdict_of(before, after) != "same"
    assert worse <= 5


def test_the_interval_holds_the_truth_as_often_as_it_says() -> None:
    generator = np.random.default_rng(9)
    held = 0
    for _ in range(300):
        (before,), (after,) = run_of(generator, 0.05, 0.0), run_of(generator, 0.05, 0.1)
        (change,) = compare_documents({"profiles": [before]}, {"profiles": [after]}, 0.05)
        held += change.shift.low <= 0.1 <= change.shift.high
    assert held >= 0.93 * 300


def test_a_slower_machine_is_no_slower_bundle() -> None:
    noise = np.random.default_rng(2).lognormal(0, 0.01, (4, 10))
    old = stored((10 * noise[0]).tolist(), noise[1].tolist())
    machine = stored((11 * noise[2]).tolist(), (1.1 * noise[3]).tolist())
    bundle = stored((11 * noise[2]).tolist(), noise[3].tolist())
    assert [change.verdict for change in compare_documents(old, machine, 0.05)] == ["same"]
    assert [change.verdict for change in compare_documents(old, bundle, 0.05)] == ["worse"]
    assert [change.verdict for change in compare_documents(bundle, old, 0.05)] == ["better"]
    (change,) = compare_documents(old, machine, 0.05)
    assert change.machine_share == pytest.approx(0.1, abs=0.01)


def test_processes_that_differ_widen_the_interval() -> None:
    rounds = np.random.default_rng(3).lognormal(0, 0.01, (4, 12))
    alike, unlike = rounds.tolist(), (rounds * np.array([[1.0], [1.1], [0.9], [1.05]])).tolist()
    widths = [(shift.high - shift.low) for shift in (apart_shift(alike, alike), apart_shift(alike, unlike))]
    assert widths[1] > 2 * widths[0]
    assert turns_shift(unlike, unlike).high < apart_shift(unlike, unlike).high
    assert apart_shift(alike[:1], alike[:1]).detectable > apart_shift(alike, alike).detectable
    with pytest.raises(ValueError, match="at least 1 process"):
        turns_shift([], [])


def test_intervals_of_rounds() -> None:
    steady = np.random.default_rng(7).lognormal(0, 0.02, 400)
    drifting = np.sort(steady)
    assert median_interval(steady.tolist()) < 0.005 < median_interval(drifting.tolist())
    assert median_interval([1.0]) == float("inf")
    with pytest.raises(ValueError, match="at least 2 rounds"):
        apart_shift([[1.0]], [[1.0, 2.0]])


def test_stages_and_processes_that_cannot_be_compared() -> None:
    short = profile_of([1.0, 1.0, 1.0, 1.0], [1.0, 1.0, 1.0, 1.0], processes=4)
    rare = profile_of([1.0, 1.0, 1.0], [1.0, 1.0, 1.0, 1.0], processes=1)
    whole = profile_of([1.0, 1.0, 1.0, 1.0], [1.0, 1.0, 1.0, 1.0], processes=2)
    for one in (short, rare):
        with pytest.raises(UserError, match="with at least 2 rounds"):
            compare_documents({"profiles": [whole]}, {"profiles": [one]}, 0.05)
    assert verdict_of(whole, whole) == "same"


def test_documents_that_cannot_be_compared(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="expected a profile of the same model"):
        compare_documents(stored([1.0, 1.0], []), {"profiles": []}, 0.05)
    with pytest.raises(UserError, match="--tolerance: expected 0 or more"):
        compare_documents(stored([1.0, 1.0], [1.0, 1.0]), stored([1.0, 1.0], [1.0, 1.0]), -1)
    for text in ("{", "[]", '{"schema": "xattn-edge/profile/0"}', json.dumps({"schema": SCHEMA})):
        path = tmp_path / "old.json"
        path.write_text(text)
        with pytest.raises(UserError, match=r"old\.json: expected"):
            read_document(path)
