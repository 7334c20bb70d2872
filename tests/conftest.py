"""What every room's tests share: tiny real bundles, pictures of noise, and what the run says at its end.

Programs that are not there skip the tests that need them; one line at the end names the packages that would bring them.
"""

from __future__ import annotations

import os
import shutil
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.support.programs import requires_program, run_npm, summary_of_skips
from tests.support.tiny_bundle import TinyModel, build_bundle, reference_pixels, write_manifest
from xattn_runtime.bundle import manifest as m
from xattn_runtime.execution.telemetry import disable_telemetry

# Before the first test module imports onnxruntime by itself.
disable_telemetry()

# Tests that run side by side have a core each. Torch reads this when the first test module imports it.
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")

# A shell's background job ignores Ctrl-C, and so would every command that a test starts and interrupts.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """What was skipped and why, in a line or two, with the packages that would bring what is missing."""
    reports = terminalreporter.stats.get("skipped", [])
    reasons = [report.longrepr[2] for report in reports if isinstance(report.longrepr, tuple)]
    for line in summary_of_skips(reason.removeprefix("Skipped: ") for reason in reasons):
        terminalreporter.write_line(line)


@pytest.fixture(scope="session", autouse=True)
def _export_once(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Each module that the tests export is exported once a run, whichever worker needs it."""
    if "xattn_export.to_onnx" not in sys.modules:  # no test of this run exports anything
        yield
        return
    from tests.support.exports import export_once

    own = tmp_path_factory.getbasetemp()
    with export_once((own.parent if "PYTEST_XDIST_WORKER" in os.environ else own) / "exports"):
        yield


@pytest.fixture
def export_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    """For tests of the export itself: nothing is taken from an earlier one."""
    import torch

    from tests.support.exports import real_export

    monkeypatch.setattr(torch.onnx, "export", real_export)


@pytest.fixture(scope="session")
def model() -> TinyModel:
    return TinyModel()


@pytest.fixture(scope="session")
def caption_bundle(tmp_path_factory: pytest.TempPathFactory, model: TinyModel) -> Path:
    return build_bundle(tmp_path_factory.mktemp("bundles") / "tiny-caption.xattn", "caption", model)


@pytest.fixture(scope="session")
def vqa_bundle(tmp_path_factory: pytest.TempPathFactory, model: TinyModel) -> Path:
    return build_bundle(tmp_path_factory.mktemp("bundles") / "tiny-vqa.xattn", "vqa", model)


@pytest.fixture
def caption_copy(caption_bundle: Path, tmp_path: Path) -> Path:
    """A bundle that a test may damage."""
    return Path(shutil.copytree(caption_bundle, tmp_path / "copy.xattn"))


@pytest.fixture
def vqa_copy(vqa_bundle: Path, tmp_path: Path) -> Path:
    """A bundle that a test may damage."""
    return Path(shutil.copytree(vqa_bundle, tmp_path / "copy-vqa.xattn"))


@pytest.fixture
def rewrite() -> Callable[[Path, m.Manifest], m.Manifest]:
    """Writes a changed manifest over a copy, with the sizes and hashes of its files as they are now."""
    return write_manifest


@pytest.fixture
def noise(tmp_path: Path) -> Callable[[int], Path]:
    """Writes a square opaque picture of noise."""

    def write(seed: int) -> Path:
        path = tmp_path / f"noise-{seed}.png"
        rng = np.random.default_rng(seed)
        Image.fromarray(rng.integers(0, 256, (20, 20, 3), dtype=np.uint8)).save(path)
        return path

    return write


@pytest.fixture
def reference_cross(model: TinyModel) -> Callable[[Path], dict[str, np.ndarray]]:
    """Cross keys and values of a picture, by numpy."""
    return lambda path: model.cross(reference_pixels(path))


@pytest.fixture(scope="session")
def node_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with ONNX Runtime for Node and for the web; without Node, npm or a registry the test is skipped."""
    requires_program("node", package="nodejs npm")
    folder = tmp_path_factory.mktemp("node")
    command = "install --no-audit --no-fund --ignore-scripts --prefix ."
    run_npm(command, ("onnxruntime-node", "onnxruntime-web"), folder)
    return folder
