"""Which golden cases a quantized bundle keeps: a changed text is a fault, unless the trained model was unsure of it.

It judges what was measured, and runs nothing.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from xattn_runtime.bundle.folder import Bundle
from xattn_runtime.bundle.manifest import GoldenCase
from xattn_runtime.errors import XattnError
from xattn_runtime.json_reader import show
from xattn_runtime.verify.golden import CaseMeasure, least_lead

__all__ = ["Judged", "judge_golden"]

# Errors of two logits differ by so much, as a multiple of the error of one, three times in a thousand.
_DEVIATIONS = 3 * math.sqrt(2)
# Logits that differ by more of their own size are no rounded ones, whatever they decide.
_MOST_ROUNDING = 0.5


@dataclass(frozen=True)
class Judged:
    """The cases that are kept, and the reasons why others are not.

    cases: near ties without their text, so that logits alone are compared. largest_relative_rms: over `cases`.
    near_ties: those whose text changed where the lead of the original model's best logit is smaller than errors of the
    measured size can overturn. dropped: the others whose text changed, or whose logits are not finite.
    """

    cases: tuple[GoldenCase, ...]
    largest_relative_rms: float
    near_ties: tuple[str, ...]
    dropped: tuple[str, ...]


def judge_golden(bundle: Bundle, measures: Sequence[CaseMeasure], mode: str) -> Judged:
    """Judge the golden cases of `bundle`, from `measures` of the quantized graphs, in the same order.

    mode: what was done, for the error. Raises XattnError where no case can be kept.
    """
    measured_cases: list[tuple[GoldenCase, float]] = []
    near_ties: list[str] = []
    dropped: list[str] = []
    for case, measured in zip(bundle.manifest.golden.cases, measures, strict=True):
        if measured.same_text and math.isfinite(measured.relative_rms):
            measured_cases.append((case, measured.relative_rms))
        elif measured.relative_rms <= _MOST_ROUNDING and _lead(bundle, case) < _DEVIATIONS * measured.relative_rms:
            measured_cases.append((replace(case, text=None), measured.relative_rms))
            near_ties.append(_note(bundle, case, measured))
        else:
            dropped.append(_note(bundle, case, measured))
    if not measured_cases:
        raise XattnError(
            f"{mode}: expected golden texts that stay as they are, found that every one changes, such as {dropped[0]}; "
            "take a milder mode, for one graph with --component ROLE=MODE, or round the weights on --data"
        )
    largest = max(difference for _, difference in measured_cases)
    return Judged(tuple(case for case, _ in measured_cases), largest, tuple(near_ties), tuple(dropped))


def _lead(bundle: Bundle, case: GoldenCase) -> float:
    with np.load(bundle.file(case.tensors), allow_pickle=False) as tensors:
        return least_lead(tensors["logits"])


def _note(bundle: Bundle, case: GoldenCase, measured: CaseMeasure) -> str:
    question = f": {case.question}" if case.question else ""
    changed = "" if measured.same_text else f" {show(measured.expected_text)} → {show(measured.found_text)},"
    lead = "" if case.text is None else f", the best leads by {_lead(bundle, case):.2g}"
    return f"{case.image}{question}:{changed} logits differ by {measured.relative_rms:.2g} of their size{lead}"
