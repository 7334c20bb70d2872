"""Whether what was profiled is slower than what was profiled before: each stage's time over that of the reference work.

A machine that has become slower itself is no fault of the bundle: it slows the reference down too, which every process
runs before and after each of its turns.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import accumulate, pairwise
from statistics import median
from typing import Any, Literal

from xattn_runtime.errors import UserError
from xattn_runtime.profiling.measure.estimates import Shift, apart_shift, turns_shift

__all__ = ["Change", "Verdict", "compare_bundles", "compare_documents", "judge"]

Verdict = Literal["better", "worse", "same"]
_KEYS = ("name", "provider", "threads", "batch")


@dataclass(frozen=True)
class Change:
    """A stage then and now. shift: of its time over the reference's; machine_share: by how much that one was slower."""

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
        UserError: nothing in common, fewer than 2 rounds in any process, or a tolerance below 0.
    """
    return _compared(old["profiles"], new["profiles"], tolerance, interleaved=False)


def compare_bundles(document: dict[str, Any], old_bundle: str, tolerance: float) -> list[Change]:
    """Every stage of the other bundles against that of `old_bundle`, with which they took turns in the same rounds.

    The profiles of `old_bundle` are taken out of `document`. Errors as of `compare_documents`.
    """
    old = [profile for profile in document["profiles"] if profile["bundle"] == old_bundle]
    document["profiles"] = [profile for profile in document["profiles"] if profile["bundle"] != old_bundle]
    return _compared(old, document["profiles"], tolerance, interleaved=True)


def _compared(
    old: Sequence[Mapping[str, Any]], new: Sequence[Mapping[str, Any]], tolerance: float, *, interleaved: bool
) -> list[Change]:
    if tolerance < 0:
        raise UserError(f"--tolerance: expected 0 or more, found {tolerance:g}")
    old_by_key = {tuple(one[key] for key in _KEYS): one for one in old}
    pairs = [(old_by_key.get(tuple(profile[key] for key in _KEYS)), profile) for profile in new]
    changes = [
        _change(earlier, profile, stage, tolerance, interleaved=interleaved)
        for earlier, profile in pairs
        if earlier is not None
        for stage in profile["rounds"]
        if _relative(earlier, stage) and _relative(profile, stage)
    ]
    if not changes:
        raise UserError(
            "--against: expected a profile of the same model, provider, threads and batch with at least 2 rounds, "
            "found none; profile the same combinations"
        )
    return changes


def _change(
    earlier: Mapping[str, Any], profile: Mapping[str, Any], stage: str, tolerance: float, *, interleaved: bool
) -> Change:
    compare = turns_shift if interleaved else apart_shift
    shift = compare(_relative(earlier, stage), _relative(profile, stage))
    machine = median(profile["reference_ms"]) / median(earlier["reference_ms"]) - 1
    before_ms, after_ms = (median(one["rounds"][stage]) for one in (earlier, profile))
    which = (profile["name"], profile["provider"], profile["threads"], profile["batch"])
    return Change(*which, stage, before_ms, after_ms, machine, shift, judge(shift, tolerance))


def _relative(profile: Mapping[str, Any], stage: str) -> list[list[float]]:
    """Of each process with at least 2 rounds, the stage over the reference in each; none where some lack the stage."""
    times, reference = profile["rounds"].get(stage, []), profile["reference_ms"]
    if len(times) != len(reference):
        return []
    relative = [time / beside for time, beside in zip(times, reference, strict=True)]
    ends = list(accumulate(profile["process_rounds"], initial=0))
    return [relative[begin:end] for begin, end in pairwise(ends) if end - begin >= 2]


def judge(shift: Shift, tolerance: float) -> Verdict:
    """What is certain (the interval leaves 0 out) and more than `tolerance` is worse, or better; all else the same."""
    if shift.low > 0 and shift.share > tolerance:
        return "worse"
    if shift.high < 0 and -shift.share > tolerance:
        return "better"
    return "same"
