from __future__ import annotations

import logging
import re
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from xattn_runtime.bundle.folder import open_bundle
from xattn_runtime.errors import BundleError, DependencyError, ProviderError, VerificationError
from xattn_runtime.execution import provider_status as status_module
from xattn_runtime.execution import providers
from xattn_runtime.execution.packages import package_conflict
from xattn_runtime.execution.provider_choice import choose_provider
from xattn_runtime.execution.provider_status import NvidiaDriver, driver_complaint, machine_status
from xattn_runtime.execution.providers import PROVIDERS, parse_provider, resolve_provider, with_fallback
from xattn_runtime.execution.settings import session_settings
from xattn_runtime.loader import load
from xattn_runtime.verify.golden import verify_bundle

ROWS = {row.name: row for row in PROVIDERS}


def build_of(*available: str, **more: Any) -> SimpleNamespace:
    """A stand-in for the module onnxruntime, of a build with these providers."""
    return SimpleNamespace(get_available_providers=lambda: list(available), __version__="1.24.0", **more)


@pytest.fixture
def put_build(monkeypatch: pytest.MonkeyPatch) -> Any:
    def put(build: SimpleNamespace) -> None:
        for module in (providers, status_module):
            monkeypatch.setattr(module, "load_onnxruntime", lambda: build)

    return put


def test_cpu_is_the_default() -> None:
    assert resolve_provider().onnxruntime_name == "CPUExecutionProvider"


def test_the_table_has_every_provider_once_with_a_way_to_get_it() -> None:
    names = "cpu cuda tensorrt openvino directml coreml qnn xnnpack acl nnapi webgpu"
    assert [row.name for row in PROVIDERS] == names.split()
    for row in PROVIDERS:
        assert row.onnxruntime_name.endswith("ExecutionProvider")
        assert row.install_command
        assert row.proof
        assert row.requirements.precisions
        assert row.requirements.highest_opset >= 18


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("tpu", "expected one of cpu, cuda, .*, auto, arm, found 'tpu'"),
        ("opnvino", r"found 'opnvino'; did you mean openvino\?"),
        ("CUDA", r"did you mean cuda\?"),
        ("cuda,openvino", "expected cpu after the comma, as in 'cuda,cpu', found 'openvino'"),
        ("qnn=/nowhere/lib.so", "provider qnn: expected a plugin library, found no file '/nowhere/lib.so'"),
        ("", "found ''"),
    ],
)
def test_what_is_no_provider(text: str, message: str) -> None:
    with pytest.raises(ProviderError, match=message):
        parse_provider(text)


def test_how_a_provider_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    library = tmp_path / "plugin.so"
    library.touch()
    assert parse_provider("openvino,cpu").fallback
    assert not parse_provider("openvino").fallback
    asked = parse_provider(f"mine={library},cpu")
    assert (asked.provider.onnxruntime_name, asked.library, asked.fallback) == ("mine", library, True)
    monkeypatch.chdir(tmp_path)  # ONNX Runtime would look for it in a folder of its own
    assert parse_provider("qnn=plugin.so").library == library
    assert with_fallback("cuda", True) == with_fallback("cuda,cpu", True) == "cuda,cpu"
    assert with_fallback("cpu", True) == "cpu"
    assert with_fallback("cuda", False) == "cuda"


def test_what_is_not_here_names_the_way_to_get_it(put_build: Any) -> None:
    put_build(build_of("CPUExecutionProvider"))
    with pytest.raises(ProviderError, match=r'provider cuda: .* run pip install "xattn-edge\[cuda\]"'):
        resolve_provider("cuda")


@pytest.mark.parametrize(
    ("name", "how"),
    [
        ("xnnpack", "no package on PyPI holds it: build ONNX Runtime from source with --build_wheel and --use_xnnpack"),
        ("coreml", "it runs on macOS, iOS; this is not macOS"),
        ("directml", "it runs on Windows; any GPU with DirectX 12; this is not Windows"),
    ],
)
def test_what_no_package_brings_here(put_build: Any, monkeypatch: pytest.MonkeyPatch, name: str, how: str) -> None:
    put_build(build_of("CPUExecutionProvider"))
    monkeypatch.setattr("sys.platform", "linux")
    with pytest.raises(ProviderError, match=f"; {re.escape(how)}$"):
        resolve_provider(name)


def test_status_of_a_build_without_device_discovery(put_build: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    put_build(build_of("CPUExecutionProvider"))
    monkeypatch.setattr(status_module, "find_spec", lambda name: None)
    status = {row.name: row for row in machine_status().providers}
    assert [name for name, row in status.items() if row.available] == ["cpu"]
    assert status["openvino"].how_to_get == 'pip install "xattn-edge[openvino]"'
    assert status["openvino"].missing == "onnxruntime-openvino is not installed"
    assert status["xnnpack"].missing == "no package on PyPI holds it"
    assert status["cpu"].devices == ()
    assert status["cpu"].onnxruntime_version == "1.24.0"


def test_status_of_the_installed_build() -> None:
    found = machine_status()
    status = {row.name: row for row in found.providers}
    assert status["cpu"].available
    assert status["cpu"].devices == ("CPU",)
    assert any(name.startswith("onnxruntime") for name in found.versions)


def test_without_onnxruntime(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(DependencyError, match=r'run pip install "xattn-edge\[cpu\]"'):
        resolve_provider("cpu")
    found = machine_status().providers
    assert {(row.available, row.onnxruntime_version) for row in found} == {(False, None)}


def test_what_is_left_of_two_builds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", SimpleNamespace())
    with pytest.raises(DependencyError, match=r"found an empty package.*--force-reinstall onnxruntime"):
        resolve_provider("cpu")


def test_ctrl_c_while_onnxruntime_is_loaded(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    package = tmp_path / "onnxruntime"
    package.mkdir()
    (package / "__init__.py").write_text('raise ImportError("initialization failed") from KeyboardInterrupt()\n')
    monkeypatch.delitem(sys.modules, "onnxruntime", raising=False)
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(KeyboardInterrupt):
        resolve_provider("cpu")


def test_two_builds_at_once(put_build: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def distribution(name: str, file: str) -> SimpleNamespace:
        return SimpleNamespace(metadata={"Name": name}, files=[Path(file)], version="1.0")

    installed = [
        distribution("onnxruntime", "onnxruntime/__init__.py"),
        distribution("onnxruntime_qnn", "onnxruntime_qnn/__init__.py"),
    ]
    monkeypatch.setattr("importlib.metadata.distributions", lambda: installed)
    assert package_conflict() is None
    installed.append(distribution("onnxruntime-gpu", "onnxruntime/__init__.py"))
    conflict = package_conflict()
    assert conflict is not None
    assert conflict.distributions == ("onnxruntime", "onnxruntime-gpu")
    assert conflict.fix_command == "pip uninstall -y onnxruntime onnxruntime-gpu && pip install onnxruntime-gpu"
    put_build(build_of("CPUExecutionProvider"))
    with pytest.raises(ProviderError, match=f"{conflict}; run {conflict.fix_command}"):
        resolve_provider("cuda")


@pytest.mark.parametrize(
    ("driver", "complaint"),
    [
        (None, "no NVIDIA driver is installed"),
        (
            NvidiaDriver("12.4", ("Card",)),
            "the NVIDIA driver is too old: it supports CUDA 12.4, and this build needs 13.0",
        ),
        (NvidiaDriver("13.0", ()), "the NVIDIA driver sees no GPU"),
        (NvidiaDriver("13.1", ("Card",)), None),
    ],
)
def test_drivers(put_build: Any, monkeypatch: pytest.MonkeyPatch, driver: NvidiaDriver | None, complaint: str) -> None:
    put_build(build_of("CUDAExecutionProvider", cuda_version="13.0"))
    monkeypatch.setattr(status_module, "nvidia_driver", lambda: driver)
    assert driver_complaint(ROWS["cuda"]) == complaint
    assert driver_complaint(ROWS["openvino"]) is None
    status = {row.name: row for row in machine_status().providers}["cuda"]
    assert (status.available, status.missing) == (complaint is None, complaint)


def test_a_library_that_is_no_plugin(caption_bundle: Path) -> None:
    with pytest.raises(ProviderError, match=r"provider qnn: expected a plugin library .*manifest\.json is none: "):
        load(caption_bundle, f"qnn={caption_bundle / 'manifest.json'}")


def test_auto_takes_the_first_that_proves_itself(
    caption_bundle: Path, put_build: Any, caplog: pytest.LogCaptureFixture
) -> None:
    put_build(build_of("CPUExecutionProvider", "CUDAExecutionProvider", "DmlExecutionProvider"))
    tried = []

    def prove(requested: providers.RequestedProvider) -> None:
        tried.append(requested.provider.name)
        if requested.provider.name == "cuda":
            raise VerificationError("its logits differ")

    bundle = open_bundle(caption_bundle)
    with caplog.at_level(logging.INFO):
        assert choose_provider("auto", bundle, prove).provider.name == "directml"
    assert tried == ["cuda", "directml"]
    assert "provider auto: directml for tiny-caption" in caplog.text
    assert "not cuda: its logits differ" in caplog.text
    with caplog.at_level(logging.INFO):
        put_build(build_of("CPUExecutionProvider"))
        assert choose_provider("auto", bundle, prove).provider.name == "cpu"
    assert "not here: cuda, directml" in caplog.text


def test_auto_answers_as_the_cpu_does_where_nothing_else_is(caption_bundle: Path) -> None:
    assert load(caption_bundle, "auto").settings.name == "cpu"


def test_arm(caption_bundle: Path, put_build: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    bundle = open_bundle(caption_bundle)
    monkeypatch.setattr("platform.machine", lambda: "x86_64")
    with pytest.raises(ProviderError, match="provider arm: expected an ARM processor, found x86_64"):
        choose_provider("arm", bundle, lambda requested: None)
    monkeypatch.setattr("platform.machine", lambda: "aarch64")
    put_build(build_of("CPUExecutionProvider"))
    assert choose_provider("arm", bundle, lambda requested: None).provider.name == "cpu"
    put_build(build_of("CPUExecutionProvider", "XnnpackExecutionProvider"))
    assert choose_provider("arm", bundle, lambda requested: None).provider.name == "xnnpack"


def test_a_choice_of_provider_is_made_by_load_and_verify_alone(caption_bundle: Path) -> None:
    opened = open_bundle(caption_bundle)
    with pytest.raises(ProviderError, match="expected the name of one provider, found auto"):
        session_settings("auto", None, opened)
    assert verify_bundle(opened, "auto").provider == "cpu"
    with pytest.raises(BundleError, match="expected a bundle for vqa, found one for caption"):
        load(opened, task="vqa")
