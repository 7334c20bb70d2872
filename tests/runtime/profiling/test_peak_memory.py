"""The memory that answering takes, in a process of its own."""

import pytest

from xattn_runtime.bundle.folder import shipped_bundles
from xattn_runtime.errors import XattnError
from xattn_runtime.profiling.measure.peak_memory import peak_memory_bytes
from xattn_runtime.profiling.worker_process import ProfileCombination, WorkerProcess


def test_of_a_small_bundle_it_is_that_of_python_onnx_runtime_and_little_more():
    assert 40e6 < peak_memory_bytes(shipped_bundles()["shapes-vqa"]) < 400e6


def test_modules_that_lie_in_the_current_folder_are_not_run(tmp_path, monkeypatch):
    for name in ("random.py", "numpy.py", "xattn_runtime.py"):
        (tmp_path / name).write_text("raise SystemExit('run')")
    monkeypatch.chdir(tmp_path)
    assert peak_memory_bytes(shipped_bundles()["shapes-vqa"]) > 0
    worker = WorkerProcess(ProfileCombination(str(shipped_bundles()["shapes-vqa"]), "cpu", 1, 1), [], 60.0)
    worker.end()
    assert worker.ready["name"] == "shapes-vqa"


def test_a_bundle_that_cannot_be_loaded_is_named(tmp_path):
    with pytest.raises(XattnError, match=r"none\.xattn: .*found nothing"):
        peak_memory_bytes(tmp_path / "none.xattn")
