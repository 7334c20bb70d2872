"""A text that quantizing changed: a near tie keeps its logits, a fault is dropped, and all of them is an error."""

import math
from dataclasses import replace

import numpy as np
import pytest

from xattn_export.quantize.gate import judge_golden
from xattn_runtime.bundle.folder import open_bundle
from xattn_runtime.errors import XattnError
from xattn_runtime.verify.golden import CaseMeasure, least_lead


@pytest.fixture
def bundle(exported):
    return open_bundle(exported["lstm"])


def lead_of(bundle, case):
    return least_lead(np.load(bundle.file(case.tensors))["logits"])


def measured(bundle, errors, found_text="another"):
    """What is measured where every case has an error of its logits, and says `found_text`."""
    return [
        CaseMeasure(case.image, case.question, error, case.text, found_text)
        for case, error in zip(bundle.manifest.golden.cases, errors, strict=True)
    ]


def test_the_lead_is_that_of_the_least_sure_row():
    logits = np.array([[3.0, 1.0, -4.0], [0.0, 2.0, -2.0]])
    size = math.sqrt((9 + 1 + 16 + 0 + 4 + 4) / 6)
    assert least_lead(logits) == pytest.approx(2 / size)
    assert least_lead(logits + 5) == pytest.approx(2 / size)
    assert least_lead(logits[0]) == pytest.approx(2 / math.sqrt(26 / 3))


def test_a_lead_that_errors_turn_is_a_near_tie(bundle):
    """The error of the least sure case is just large enough to turn its lead, those of the others are too small."""
    cases = bundle.manifest.golden.cases
    turned = [lead_of(bundle, case) / (3 * math.sqrt(2)) for case in cases]
    tie = turned.index(min(turned))
    errors = [one * (1.01 if number == tie else 0.99) for number, one in enumerate(turned)]
    judged = judge_golden(bundle, measured(bundle, errors), "int4")
    assert judged.cases == (replace(cases[tie], text=None),)
    assert judged.largest_relative_rms == errors[tie]
    assert len(judged.near_ties) == 1 and len(judged.dropped) == len(cases) - 1
    first = next(case for number, case in enumerate(cases) if number != tie)
    assert judged.dropped[0].startswith(
        f"{first.image}: {first.question}: '{first.text}' → 'another', logits differ by "
    )
    assert judged.dropped[0].endswith(f" of their size, the best leads by {lead_of(bundle, first):.2g}")


@pytest.mark.parametrize("error", [0.6, math.inf])
def test_logits_that_are_far_off_excuse_nothing(bundle, error):
    count = len(bundle.manifest.golden.cases)
    with pytest.raises(
        XattnError, match=r"^int4 and int8: expected golden texts .* 'another', logits differ by .*--data$"
    ):
        judge_golden(bundle, measured(bundle, [error] * count), "int4 and int8")
    judged = judge_golden(bundle, [*measured(bundle, [error] * count)[:-1], *same(bundle)[-1:]], "int4")
    assert len(judged.cases) == 1 and judged.cases[0].text is not None and len(judged.dropped) == count - 1


def same(bundle):
    return [CaseMeasure(case.image, case.question, 0.01, case.text, case.text) for case in bundle.manifest.golden.cases]


def test_what_is_not_finite_is_dropped_though_its_text_stays(bundle):
    first, *others = same(bundle)
    broken = CaseMeasure(first.image, first.question, math.inf, first.expected_text, first.found_text)
    judged = judge_golden(bundle, [broken, *others], "int8")
    assert len(judged.cases) == len(others) and not judged.near_ties
    assert judged.dropped[0].startswith(f"{first.image}: {first.question}: logits differ by inf")
