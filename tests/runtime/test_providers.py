from __future__ import annotations

import sys
from types import SimpleNamespace

import pytest

from xattn_runtime import providers
from xattn_runtime.errors import DependencyError, ProviderError
from xattn_runtime.providers import provider_status, resolve_provider


def test_cpu_is_the_default() -> None:
    assert resolve_provider().onnxruntime_name == "CPUExecutionProvider"


@pytest.fixture
def _cpu_build_only(monkeypatch: pytest.MonkeyPatch) -> None:
    build = SimpleNamespace(get_available_providers=lambda: ["CPUExecutionProvider"], __version__="1.24.0")
    monkeypatch.setattr(providers, "load_onnxruntime", lambda: build)


@pytest.mark.usefixtures("_cpu_build_only")
def test_what_is_not_here_names_the_way_to_get_it() -> None:
    with pytest.raises(ProviderError, match="expected one of cpu, cuda, openvino, found 'tpu'"):
        resolve_provider("tpu")
    with pytest.raises(ProviderError, match=r'provider cuda: .* run pip install "xattn-edge\[cuda\]"'):
        resolve_provider("cuda")


@pytest.mark.usefixtures("_cpu_build_only")
def test_status_of_a_build_without_device_discovery() -> None:
    status = {row.name: row for row in provider_status()}
    assert [row.available for row in status.values()] == [True, False, False]
    assert status["openvino"].how_to_get == 'pip install "xattn-edge[openvino]"'
    assert status["cpu"].devices == ()
    assert status["cpu"].onnxruntime_version == "1.24.0"


def test_status_of_the_installed_build() -> None:
    status = {row.name: row for row in provider_status()}
    assert status["cpu"].available
    assert status["cpu"].devices == ("CPU",)


def test_without_onnxruntime(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(DependencyError, match=r'run pip install "xattn-edge\[cpu\]"'):
        resolve_provider("cpu")
    assert [(row.available, row.onnxruntime_version) for row in provider_status()] == [(False, None)] * 3
