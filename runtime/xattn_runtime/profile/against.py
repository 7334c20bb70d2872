"""Whether what was profiled is slower than what was profiled before: each stage's medians of all rounds, old and new.

A machine that has become slower itself is no fault of the bundle: what the reference work took is divided out where it
differs by more than it varies.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from xattn_runtime.errors import UserError
from xattn_runtime.profile.estimates import Shift, mean_shift

__all__ = ["Change", "Verdict", "compare_documents", "judge"]

Verdict = Literal["better", "worse", "same"]
_KEYS = ("name", "provider", "threads", "batch")


@dataclass(frozen=True)
class Change:
    """A stage then and now. shift: of the time, after machine_share, by which the machine was slower, was taken out."""

    name: str
    provider: str
    threads: int
    batch: int
    stage: str
    before_ms: float
    after_ms: float
    machine_share: float
    shift: Shift
    verdict: Verdict

    def to_dict(self) -> dict[str, Any]:
        """JSON values."""
        return asdict(self)


def compare_documents(old: Mapping[str, Any], new: Mapping[str, Any], tolerance: float) -> list[Change]:
    """Every stage that both documents have, of the same model, provider, threads and batch.

    Args:
        tolerance: the share by which a stage may be slower; what is certain and larger is "worse".

    Raises:
        UserError: nothing in common, fewer than 2 rounds, or a tolerance below 0.
    """
    if tolerance < 0:
        raise UserError(f"--tolerance: expected 0 or more, found {tolerance:g}")
    machine = _machine(old["reference_ms"], new["reference_ms"])
    before = {tuple(one[key] for key in _KEYS): one for one in old["profiles"]}
    found = []
    for profile in new["profiles"]:
        earlier = before.get(tuple(profile[key] for key in _KEYS))
        for stage, after in profile["rounds"].items() if earlier else ():
            then = earlier["rounds"].get(stage, []) if earlier else []
            if min(len(then), len(after)) < 2:
                continue
            shift = mean_shift(then, [value / (1 + machine) for value in after])
            found.append(
                Change(
                    name=profile["name"],
                    provider=profile["provider"],
                    threads=profile["threads"],
                    batch=profile["batch"],
                    stage=stage,
                    before_ms=_middle(then),
                    after_ms=_middle(after),
                    machine_share=machine,
                    shift=shift,
                    verdict=judge(shift, tolerance),
                )
            )
    if not found:
        raise UserError(
            "--against: expected a profile of the same model, provider, threads and batch with at least 2 rounds, "
            "found none; profile the same combinations"
        )
    return found


def judge(shift: Shift, tolerance: float) -> Verdict:
    """What is certain (the interval leaves 0 out) and more than `tolerance` is worse, or better; all else the same."""
    if shift.low > 0 and shift.share > tolerance:
        return "worse"
    if shift.high < 0 and -shift.share > tolerance:
        return "better"
    return "same"


def _machine(before: Sequence[float], after: Sequence[float]) -> float:
    """By what share the machine was slower at the same work; 0 where that is not certain."""
    if min(len(before), len(after)) < 2:
        return 0.0
    shift = mean_shift(before, after)
    return 0.0 if shift.low <= 0 <= shift.high else shift.share


def _middle(values: Sequence[float]) -> float:
    ordered = sorted(values)
    return ordered[len(ordered) // 2]
