from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from xattn_runtime.bundle.folder import open_bundle
from xattn_runtime.errors import BundleError, VerificationError
from xattn_runtime.loader import load
from xattn_runtime.verify.golden import measure, relative_rms, verify_bundle


@pytest.mark.parametrize("fixture", ["caption_bundle", "vqa_bundle"])
def test_a_good_bundle_passes(fixture: str, request: pytest.FixtureRequest) -> None:
    report = verify_bundle(request.getfixturevalue(fixture))
    assert report.passed
    assert len(report.cases) == 3
    assert 0 < max(case.measure.relative_rms for case in report.cases) < 1e-5
    report.raise_if_failed()


def _scale_logits(bundle: Path, factor: float, rewrite: Any) -> None:
    path = bundle / "golden/1.npz"
    manifest = open_bundle(bundle).manifest
    np.savez(path, logits=np.load(path)["logits"] * factor)
    rewrite(bundle, manifest)


@pytest.mark.parametrize("fixture", ["caption_copy", "vqa_copy"])
def test_other_logits_fail_and_are_measured(fixture: str, request: pytest.FixtureRequest, rewrite: Any) -> None:
    bundle = request.getfixturevalue(fixture)
    _scale_logits(bundle, 2.0, rewrite)
    report = verify_bundle(bundle)
    assert [case.passed for case in report.cases] == [True, False, True]
    assert report.cases[1].measure.relative_rms == pytest.approx(0.5, abs=1e-4)
    with pytest.raises(VerificationError, match=r"1 of 3 golden cases failed on cpu: golden/1\.png: .* found 0\.5 and"):
        report.raise_if_failed()
    assert measure(load(bundle))[1].relative_rms == pytest.approx(0.5, abs=1e-4)


def test_another_text_fails_though_the_logits_agree(vqa_copy: Path, rewrite: Any) -> None:
    manifest = open_bundle(vqa_copy).manifest
    cases = (replace(manifest.golden.cases[0], text="never"), *manifest.golden.cases[1:])
    rewrite(vqa_copy, replace(manifest, golden=replace(manifest.golden, cases=cases)))
    report = verify_bundle(vqa_copy)
    assert [case.passed for case in report.cases] == [False, True, True]
    assert report.cases[0].measure.expected_text == "never"


def test_the_tolerance_is_the_bundles(caption_copy: Path, rewrite: Any) -> None:
    _scale_logits(caption_copy, 2.0, rewrite)
    manifest = open_bundle(caption_copy).manifest
    rewrite(caption_copy, replace(manifest, golden=replace(manifest.golden, relative_rms=0.51)))
    assert verify_bundle(caption_copy).passed


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({"other": np.zeros(5)}, "expected an .npz with logits"),
        ({"logits": np.zeros(4)}, "logits: expected floating-point values of shape [5], found float64 [4]"),
        ({"logits": np.zeros(5, np.int64)}, "found int64 [5]"),
        ({"logits": np.array([{}] * 5)}, "expected an .npz with logits"),
        (b"no archive", "expected an .npz with logits"),
    ],
)
def test_golden_files_that_cannot_be_used(vqa_copy: Path, rewrite: Any, tensors: Any, message: str) -> None:
    manifest = open_bundle(vqa_copy).manifest
    path = vqa_copy / "golden/0.npz"
    if isinstance(tensors, bytes):
        path.write_bytes(tensors)
    else:
        np.savez(path, **tensors)
    rewrite(vqa_copy, manifest)
    with pytest.raises(BundleError) as caught:
        verify_bundle(vqa_copy)
    assert message in str(caught.value)


def test_report_is_json(caption_copy: Path, rewrite: Any) -> None:
    _scale_logits(caption_copy, float("nan"), rewrite)
    data = json.loads(json.dumps(verify_bundle(caption_copy).to_dict(), allow_nan=False))
    assert data["passed"] is False
    assert [case["relative_rms"] is None for case in data["cases"]] == [False, True, False]
    assert data["cases"][0].keys() == {"image", "question", "relative_rms", "expected_text", "found_text", "passed"}


@given(shift=st.floats(-100, 100), scale=st.floats(0.1, 10))
def test_relative_rms(shift: float, scale: float) -> None:
    golden = np.random.default_rng(0).normal(size=(4, 7))
    rows = np.arange(4)[:, None]
    assert relative_rms(golden + shift * rows, golden) == pytest.approx(0, abs=1e-9)
    assert relative_rms(golden * scale, golden) == pytest.approx(abs(scale - 1), abs=1e-9)


def test_relative_rms_of_what_is_not_finite_or_constant() -> None:
    golden = np.array([1.0, 2.0])
    assert relative_rms(np.array([np.nan, 0.0]), golden) == float("inf")
    assert relative_rms(golden, np.ones(2)) == float("inf")
    assert relative_rms(np.ones(2), np.ones(2)) == 0
