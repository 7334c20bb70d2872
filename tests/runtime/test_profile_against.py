from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from xattn_runtime.errors import UserError
from xattn_runtime.profile import SCHEMA, read_document
from xattn_runtime.profile.against import compare_bundles, compare_documents
from xattn_runtime.profile.estimates import mean_interval, ratio_shift, run_shift


def test_shifts() -> None:
    generator = np.random.default_rng(1)
    wrong, found = 0, 0
    for _ in range(400):
        before, noise = generator.lognormal(0, 0.3, 5), generator.lognormal(0, 0.03, 5)
        same = ratio_shift(before, before * noise)
        wrong += same.low > 0 or same.high < 0
        found += ratio_shift(before, 1.1 * before * noise).low > 0
    assert wrong <= 0.06 * 400
    assert found >= 0.95 * 400
    assert ratio_shift([1.0, 3.0], [2.0, 6.0]).share == pytest.approx(1.0)
    for before, after in (([1.0], [1.0]), ([1.0, 2.0], [1.0])):
        with pytest.raises(ValueError, match="at least 2 pairs"):
            ratio_shift(before, after)


def run_of(
    generator: np.random.Generator, share: float = 0.0, machine: float = 0.03, rounds: int = 24
) -> dict[str, Any]:
    """The profile of a run: a machine of another speed than in the last one, a process that differs by 0.8 %, noise of
    2 % in which rounds are like the one before, and others that disturb every seventh round."""
    speed, process, noise, total, reference = generator.normal(0, machine), generator.normal(0, 0.008), 0.0, [], []
    for _ in range(rounds):
        noise = 0.6 * noise + generator.normal(0, 0.02 * 0.8)
        burst = generator.exponential(0.3) if generator.random() < 0.15 else 0.0
        total.append((1 + share) * float(np.exp(speed + process + noise + burst)))
        reference.append(float(np.exp(speed + generator.normal(0, 0.01) + burst * generator.random())))
    return profile_of(total, reference)


def profile_of(total_ms: list[float], reference_ms: list[float], bundle: str = "b") -> dict[str, Any]:
    which = {"bundle": bundle, "name": "m", "provider": "cpu", "threads": 1, "batch": 1}
    return {**which, "fast_rounds": {"total": total_ms}, "reference_ms": reference_ms}


def stored(total_ms: list[float], reference_ms: list[float]) -> dict[str, Any]:
    return {"profiles": [profile_of(total_ms, reference_ms)]}


def verdict_of(before: dict[str, Any], after: dict[str, Any]) -> str:
    (change,) = compare_documents({"profiles": [before]}, {"profiles": [after]}, 0.05)
    return change.verdict


@pytest.mark.parametrize("machine", [0.0, 0.02, 0.04])
def test_runs_of_the_same_are_the_same_and_a_tenth_is_found(machine: float) -> None:
    generator = np.random.default_rng(4)
    tries = 400
    same = found = 0
    for _ in range(tries):
        before, after, slow = (run_of(generator, share, machine, rounds=48) for share in (0.0, 0.0, 0.1))
        same += verdict_of(before, after) == "same"
        found += verdict_of(before, slow) == "worse"
    assert same >= 0.95 * tries
    assert found >= 0.95 * tries


def test_a_machine_of_half_the_speed_is_no_slower_bundle() -> None:
    generator = np.random.default_rng(5)
    worse = 0
    for _ in range(100):
        before, after = run_of(generator, machine=0.0), run_of(generator, machine=0.0)
        after["fast_rounds"]["total"] = [2 * value for value in after["fast_rounds"]["total"]]
        after["reference_ms"] = [2 * value for value in after["reference_ms"]]
        worse += verdict_of(before, after) != "same"
    assert worse <= 5


def test_a_reference_that_says_nothing_does_no_harm() -> None:
    total, noise = [1.0, 1.01, 0.99, 1.0, 1.02, 0.98], [1.0, 1.3, 0.8, 1.2, 0.7, 1.1]
    alone, _ = run_shift(total, total)
    beside, machine = run_shift(total, total, noise, noise[::-1])
    assert (beside, machine) == (alone, 0.0)


def test_what_took_turns_needs_no_reference() -> None:
    generator = np.random.default_rng(6)
    tries, same, found = 200, 0, 0
    for _ in range(tries):
        # A machine that changes its speed by 10 % from round to round.
        speed = np.exp(generator.normal(0, 0.1, 12))
        sides = [(speed * generator.lognormal(0, 0.02, 12)).tolist() for _ in range(2)]
        for share in (1.0, 1.1):
            slowed = [share * value for value in sides[1]]
            document = {"profiles": [profile_of(sides[0], [], "old"), profile_of(slowed, [], "new")]}
            (change,) = compare_bundles(document, "old", 0.05)
            same += share == 1.0 and change.verdict == "same"
            found += share > 1.0 and change.verdict == "worse"
            assert [profile["bundle"] for profile in document["profiles"]] == ["new"]
    assert same >= 0.95 * tries
    assert found >= 0.95 * tries


def test_a_slower_machine_is_no_slower_bundle() -> None:
    noise = np.random.default_rng(2).lognormal(0, 0.01, (4, 10))
    old = stored((10 * noise[0]).tolist(), noise[1].tolist())
    machine = stored((11 * noise[2]).tolist(), (1.1 * noise[3]).tolist())
    bundle = stored((11 * noise[2]).tolist(), noise[3].tolist())
    assert [change.verdict for change in compare_documents(old, machine, 0.05)] == ["same"]
    assert [change.verdict for change in compare_documents(old, bundle, 0.05)] == ["worse"]
    assert [change.verdict for change in compare_documents(bundle, old, 0.05)] == ["better"]


def test_intervals_of_rounds() -> None:
    steady = np.random.default_rng(7).lognormal(0, 0.02, 400)
    drifting = np.sort(steady)
    assert mean_interval(steady.tolist()) < 0.005 < mean_interval(drifting.tolist())
    assert mean_interval([1.0]) == float("inf")
    with pytest.raises(ValueError, match="at least 2 rounds"):
        run_shift([1.0], [1.0, 2.0])


def test_documents_that_cannot_be_compared(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="expected a profile of the same model"):
        compare_documents(stored([1.0, 1.0], []), {"profiles": []}, 0.05)
    with pytest.raises(UserError, match="--tolerance: expected 0 or more"):
        compare_documents(stored([1.0, 1.0], []), stored([1.0, 1.0], []), -1)
    for text in ("{", "[]", '{"schema": "xattn-edge/profile/0"}', json.dumps({"schema": SCHEMA})):
        path = tmp_path / "old.json"
        path.write_text(text)
        with pytest.raises(UserError, match=r"old\.json: expected"):
            read_document(path)
