"""Confidence that comes true: the fitted temperature, the error it leaves, and what is written into a bundle."""

import json

import numpy as np
import pytest

from xattn_edge.evaluation.calibration import expected_calibration_error, fit_temperature
from xattn_runtime.bundle.folder import default_bundle, open_bundle


def test_the_error_is_the_mean_gap():
    confidences = np.array([0.95, 0.95, 0.95, 0.95, 0.35, 0.35])
    right = np.array([True, True, True, False, False, True])
    assert expected_calibration_error(confidences, right) == pytest.approx((4 * 0.2 + 2 * 0.15) / 6)
    assert expected_calibration_error(np.array([1.0, 0.0]), np.array([True, False])) == 0


@pytest.mark.parametrize("temperature", [0.4, 1.0, 3.0])
def test_a_known_temperature_is_found(temperature):
    """Labels are drawn from logits, which are then sharpened or flattened."""
    rng = np.random.default_rng(1)
    logits = rng.normal(size=(20_000, 6), scale=2).astype(np.float32)
    labels = np.argmax(logits + rng.gumbel(size=logits.shape), axis=1)
    found = fit_temperature(logits * np.float32(temperature), labels)
    assert found == pytest.approx(temperature, rel=0.05)
    shares = np.exp(logits)
    shares /= shares.sum(axis=1, keepdims=True)
    assert expected_calibration_error(shares.max(1), shares.argmax(1) == labels) < 0.015
    wrong = shares**2 / (shares**2).sum(axis=1, keepdims=True)
    assert expected_calibration_error(wrong.max(1), wrong.argmax(1) == labels) > 0.1


def test_answers_that_are_all_right_do_not_become_certain():
    logits = np.tile(np.array([3.0, 0.0, 0.0], np.float32), (100, 1))
    temperature = fit_temperature(logits, np.zeros(100, np.int64))
    confidence = 1 / (1 + 2 * np.exp(-3 / temperature))
    assert confidence == pytest.approx(101 / 102, abs=1e-3)


def test_the_command_writes_what_it_found(invoke, tmp_path):
    import shutil

    pytest.importorskip("easy_vqa")
    bundle = shutil.copytree(default_bundle("vqa"), tmp_path / "shapes.xattn")
    arguments = ("calibrate", bundle, "--data", "easy-vqa", "--limit", "300", "--json")
    found = json.loads(invoke(*arguments).stdout)
    assert found["fitted"] + found["held_out"] == 300
    assert 0 <= found["ece_after"] < 0.05
    assert open_bundle(bundle).manifest.calibration is None
    assert json.loads(invoke(*arguments, "--record").stdout)["temperature"] == found["temperature"]
    recorded = open_bundle(bundle).manifest.calibration
    assert recorded is not None
    assert recorded.to_dict() == {key: found[key] for key in recorded.to_dict()}


def test_what_cannot_be_calibrated(invoke, caption_bundle, vqa_bundle):
    for arguments, message in (
        ((caption_bundle, "--data", "easy-vqa"), "expected a bundle that chooses its answers among labels"),
        ((vqa_bundle, "--data", "emoji"), "unknown data set 'emoji'; expected easy-vqa"),
    ):
        result = invoke("calibrate", *arguments)
        assert (result.exit_code, result.stdout) == (2, "")
        assert message in result.stderr
