"""The memory that answering takes, in a process of its own."""

import pytest

from xattn_runtime.bundle.folder import shipped_bundles
from xattn_runtime.errors import XattnError
from xattn_runtime.profiling.measure.peak_memory import peak_memory_bytes


def test_of_a_small_bundle_it_is_that_of_python_onnx_runtime_and_little_more():
    assert 40e6 < peak_memory_bytes(shipped_bundles()["shapes-vqa"]) < 400e6


def test_a_bundle_that_cannot_be_loaded_is_named(tmp_path):
    with pytest.raises(XattnError, match=r"none\.xattn: .*found nothing"):
        peak_memory_bytes(tmp_path / "none.xattn")
