from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from xattn_runtime.errors import BundleError, ImageError, UserError, XattnError
from xattn_runtime.profile import (
    ProfileReport,
    StageTiming,
    describe_machine,
    process,
    profile_bundle,
    profile_in_process,
)
from xattn_runtime.profile.machine import PeakMemory, _peak_from_proc
from xattn_runtime.profile.report import summarise


def test_caption_stages(caption_bundle: Path) -> None:
    calls: list[tuple[int, int]] = []
    report = profile_bundle(caption_bundle, threads=1, runs=6, warmup=2, progress=lambda *call: calls.append(call))
    assert calls == [(i, 8) for i in range(1, 9)]
    assert list(report.stages) == ["preprocess", "encode", "decode", "total", "prefill", "step"]
    assert {stage: report.stages[stage].n for stage in ("preprocess", "encode", "decode", "prefill", "total")} == {
        "preprocess": 6,
        "encode": 6,
        "decode": 6,
        "prefill": 6,
        "total": 6,
    }
    decoding_ms = report.stages["decode"].n * report.stages["decode"].mean_ms
    tokens = report.stages["prefill"].n + report.stages["step"].n
    assert report.tokens_per_second == pytest.approx(1000 * tokens / decoding_ms)
    parts = ("preprocess", "encode", "decode")
    assert report.stages["total"].mean_ms * 6 >= sum(report.stages[s].mean_ms * report.stages[s].n for s in parts)
    assert report.load_ms > 0
    assert (report.threads, report.provider, report.task, report.name) == (1, "cpu", "caption", "tiny-caption")


def test_vqa_stages(vqa_bundle: Path) -> None:
    report = profile_bundle(vqa_bundle, threads=1, runs=4, warmup=0)
    assert list(report.stages) == ["preprocess", "encode", "answer", "total"]
    assert report.tokens_per_second is None


def test_given_images_are_used(caption_bundle: Path, noise: Callable[[int], Path], tmp_path: Path) -> None:
    assert profile_bundle(caption_bundle, threads=1, runs=2, warmup=0, images=[noise(0)]).runs == 2
    with pytest.raises(ImageError, match="found no such file"):
        profile_bundle(caption_bundle, threads=1, runs=1, warmup=0, images=[tmp_path / "none.png"])


@pytest.mark.parametrize(("runs", "warmup"), [(0, 0), (1, -1)])
def test_counts_that_make_no_sense(caption_bundle: Path, runs: int, warmup: int) -> None:
    with pytest.raises(UserError, match="expected runs of at least 1 and warmup of at least 0"):
        profile_bundle(caption_bundle, runs=runs, warmup=warmup)


def test_in_a_process_of_its_own(caption_bundle: Path, noise: Callable[[int], Path]) -> None:
    calls: list[tuple[int, int]] = []
    report = profile_in_process(
        caption_bundle, threads=1, runs=2, warmup=1, images=[noise(0)], progress=lambda *call: calls.append(call)
    )
    assert calls == [(1, 3), (2, 3), (3, 3)]
    assert report.bundle == str(caption_bundle)
    assert ProfileReport.from_dict(json.loads(json.dumps(report.to_dict(), allow_nan=False))) == report
    if sys.platform == "linux":
        own = profile_bundle(caption_bundle, threads=1, runs=1, warmup=0).peak_memory.bytes
        # This process holds onnx, pytest and the rest as well.
        assert report.peak_memory.bytes is not None
        assert own is not None
        assert 10e6 < report.peak_memory.bytes < own


def test_errors_cross_the_process(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="expected a bundle folder, found nothing"):
        profile_in_process(tmp_path / "-none.xattn")


def test_a_process_that_dies(caption_bundle: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    killed = tmp_path / "python"
    killed.write_text("#!/bin/sh\necho out of memory >&2\nkill -9 $$\n")
    killed.chmod(0o755)
    monkeypatch.setattr(process.sys, "executable", str(killed))
    with pytest.raises(XattnError, match="ended with code -9: out of memory"):
        profile_in_process(caption_bundle)


def test_percentiles() -> None:
    assert summarise([float(i) for i in range(101)]) == StageTiming(101, 50.0, 90.0, 99.0, 50.0)
    assert summarise([2.0]) == StageTiming(1, 2.0, 2.0, 2.0, 2.0)
    assert np.isfinite(summarise([1.0, 2.0]).p99_ms)


def test_peak_memory_of_proc(tmp_path: Path) -> None:
    status = tmp_path / "status"
    status.write_text("Name:\tx\nVmHWM:\t    2048 kB\n")
    assert _peak_from_proc(status) == PeakMemory(2048 * 1024)
    status.write_text("Name:\tx\n")
    assert _peak_from_proc(status) == PeakMemory(None, f"{status} does not say VmHWM")
    assert _peak_from_proc(tmp_path / "none").bytes is None


def test_machine() -> None:
    machine = describe_machine()
    assert machine.cores >= 1
    assert machine.system
    assert machine.architecture
    assert machine.cpu
