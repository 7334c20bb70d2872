"""Which processors need the slower, wider sums of int8 products."""

from dataclasses import replace

import onnxruntime
import pytest

from xattn_runtime import Bundle, default_bundle, load, open_bundle
from xattn_runtime.execution import loading, processor


@pytest.mark.parametrize(
    ("machine", "cpuinfo", "exact"),
    [
        ("x86_64", "flags\t\t: fpu sse avx2 avx512_vnni\n", True),
        ("AMD64", "processor: 0\nflags : avx2 avx_vnni\n", True),
        ("x86_64", "flags\t\t: fpu sse avx2 avx512f avx512bw\n", False),
        ("x86_64", "model name: avx512_vnni\n", False),
        ("x86_64", None, False),
        ("aarch64", None, True),
    ],
)
def test_who_sums_exactly(monkeypatch, tmp_path, machine, cpuinfo, exact):
    file = tmp_path / "cpuinfo"
    if cpuinfo is not None:
        file.write_text(cpuinfo)
    monkeypatch.setattr(processor, "_CPUINFO", file)
    monkeypatch.setattr(processor.platform, "machine", lambda: machine)
    assert processor.sums_int8_exactly() is exact


@pytest.mark.parametrize("exact", [True, False])
def test_wider_sums_only_where_they_are_needed(monkeypatch, exact):
    entries = []
    real = onnxruntime.SessionOptions.add_session_config_entry

    def record(self, key, value):
        entries.append(key)
        real(self, key, value)

    monkeypatch.setattr(onnxruntime.SessionOptions, "add_session_config_entry", record)
    monkeypatch.setattr(loading, "sums_int8_exactly", lambda: exact)
    bundle = open_bundle(default_bundle("vqa"))
    asking = replace(bundle.manifest, session_options={"session.x64quantprecision": "1"})
    load(Bundle(bundle.path, asking))
    assert ("session.x64quantprecision" in entries) is not exact
