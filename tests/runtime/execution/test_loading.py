"""Graphs on a provider that takes only some of their nodes, fails, or loses its device: fakes at the session's edge."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnxruntime
import pytest

from xattn_runtime.bundle.folder import open_bundle
from xattn_runtime.errors import ProviderError
from xattn_runtime.execution import loading
from xattn_runtime.execution.providers import PROVIDERS, load_onnxruntime
from xattn_runtime.execution.session import GraphSession, SessionSettings, open_session
from xattn_runtime.loader import load

ROWS = {row.name: row for row in PROVIDERS}


class Partial:
    """A session of the CPU that says that another provider has the nodes that `takes` accepts."""

    def __init__(self, inner: Any, name: str, takes: Callable[[str], bool]) -> None:
        self._inner, self._name, self._takes = inner, name, takes
        self.failures: list[Exception] = []

    def __getattr__(self, attribute: str) -> Any:
        return getattr(self._inner, attribute)

    def get_providers(self) -> list[str]:
        return [self._name, "CPUExecutionProvider"]

    def get_provider_graph_assignment_info(self) -> list[Any]:
        return [
            SimpleNamespace(
                ep_name=self._name if self._takes(node.op_type) else part.ep_name, get_nodes=lambda n=node: [n]
            )
            for part in self._inner.get_provider_graph_assignment_info()
            for node in part.get_nodes()
        ]

    def run(self, outputs: list[str], inputs: dict[str, Any]) -> list[Any]:
        if self.failures:
            raise self.failures.pop()
        return list(self._inner.run(outputs, inputs))


@pytest.fixture
def pretend(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Makes ONNX Runtime pretend to have a provider."""

    def put(name: str, takes: Callable[[str], bool] = lambda operator: True, failure: Exception | None = None) -> None:
        def create(path: str, *, sess_options: Any, providers: list[Any], enable_fallback: int) -> Any:
            on_cpu = providers == ["CPUExecutionProvider"]
            if failure is not None and not on_cpu:
                raise failure
            inner = onnxruntime.InferenceSession(path, sess_options, providers=["CPUExecutionProvider"])
            return inner if on_cpu else Partial(inner, name, takes)

        create.get_provider_graph_assignment_info = None  # type: ignore[attr-defined]
        build = SimpleNamespace(
            **{key: getattr(onnxruntime, key) for key in ("SessionOptions", "GraphOptimizationLevel", "OrtValue")},
            InferenceSession=create,
            get_available_providers=lambda: [name, "CPUExecutionProvider"],
        )
        monkeypatch.setattr(loading, "load_onnxruntime", lambda: build)
        monkeypatch.setattr("xattn_runtime.execution.providers.load_onnxruntime", lambda: build)

    return put


def opened(bundle: Path, name: str, role: str = "decoder", **settings: Any) -> GraphSession:
    return open_session(open_bundle(bundle), role, SessionSettings(ROWS[name], 1, **settings))


def test_light_nodes_may_be_on_the_cpu(caption_bundle: Path, pretend: Any) -> None:
    pretend("OpenVINOExecutionProvider", lambda operator: operator in ("MatMul", "Softmax"))
    placement = opened(caption_bundle, "openvino").placement
    assert placement is not None
    assert list(placement) == ["openvino", "cpu"]
    assert placement["openvino"] > 10


def test_heavy_nodes_may_not_unless_the_user_says_so(
    caption_bundle: Path, pretend: Any, caplog: pytest.LogCaptureFixture
) -> None:
    pretend("OpenVINOExecutionProvider", lambda operator: operator != "MatMul")
    with pytest.raises(ProviderError) as caught:
        opened(caption_bundle, "openvino")
    message = str(caught.value)
    assert message.startswith("provider openvino: expected it to take all of ")
    assert "refused MatMul" in message
    assert " more; use --fallback" in message
    caplog.set_level("INFO")
    placement = opened(caption_bundle, "openvino", fallback=True).placement
    assert placement is not None
    assert placement["cpu"] > 10
    assert f"decoder.onnx: {placement['openvino']} on openvino, {placement['cpu']} on cpu" in caplog.text


def test_a_graph_that_is_refused_as_a_whole(caption_bundle: Path, pretend: Any) -> None:
    pretend(
        "OpenVINOExecutionProvider", failure=RuntimeError("Long\nnames. OpenVINO does not support the following ONNX")
    )
    with pytest.raises(ProviderError, match=r"found: does not support the following ONNX; .*--provider cpu"):
        opened(caption_bundle, "openvino")
    placement = opened(caption_bundle, "openvino", fallback=True).placement
    assert placement is not None
    assert list(placement) == ["cpu"]
    assert load(caption_bundle, "openvino,cpu").settings.name == "openvino,cpu"


@pytest.mark.parametrize(
    ("failure", "words"),
    [
        (RuntimeError("CUDA failure 2: out of memory"), "expected enough memory on the GPU"),
        (
            RuntimeError("the GPU has fallen off the bus"),
            "expected the GPU to run .* found that it failed: .* off the bus",
        ),
    ],
)
def test_a_device_that_fails_is_named_and_the_next_call_works(
    caption_bundle: Path, pretend: Any, failure: Exception, words: str
) -> None:
    pretend("DmlExecutionProvider")
    session = opened(caption_bundle, "directml", "image_encoder")
    pixels = {"pixel_values": np.zeros((1, 3, 16, 16), np.float32)}
    first: Any = session._loaded.graph
    first.failures.append(failure)
    with pytest.raises(ProviderError, match=f"provider directml: {words}"):
        session.run(["cross_key_0"], pixels)
    assert session.run(["cross_key_0"], pixels)[0].shape == (1, 2, 4, 4)
    assert session._loaded.graph is not first


def test_tensors_stay_on_the_device(caption_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    session = opened(caption_bundle, "cpu", "image_encoder")
    monkeypatch.setattr(GraphSession, "memory", "cpu")
    pixels = {"pixel_values": np.ones((1, 3, 16, 16), np.float32)}
    plain = session.run(["cross_key_0", "cross_value_0"], pixels)
    kept, copied = session.run(["cross_key_0", "cross_value_0"], session.on_device(pixels), keep=["cross_key_0"])
    assert not isinstance(kept, np.ndarray)
    np.testing.assert_array_equal(kept.numpy(), plain[0])
    np.testing.assert_array_equal(copied, plain[1])


def test_the_cache_stays_on_the_device(caption_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    task = load(caption_bundle, task="caption")
    encoded = task.encode(np.zeros((16, 16, 3), np.uint8))
    expected = [step.token_ids.tolist() for step in task.steps(encoded)]
    build, copied = load_onnxruntime(), []

    def copy(*given: Any) -> Any:
        copied.append(given)
        return build.OrtValue.ortvalue_from_numpy(*given)

    stand_in = SimpleNamespace(OrtValue=SimpleNamespace(ortvalue_from_numpy=copy))
    monkeypatch.setattr("xattn_runtime.execution.session.load_onnxruntime", lambda: stand_in)
    monkeypatch.setattr(GraphSession, "memory", "cpu")
    assert [step.token_ids.tolist() for step in task.steps(encoded)] == expected
    assert len(expected) > 1
    assert len(copied) == sum(name.startswith("cross_") for name in encoded.tensors)  # once, not at every step
