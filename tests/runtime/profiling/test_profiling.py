from __future__ import annotations

import json
import signal
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest

from xattn_runtime.errors import UserError
from xattn_runtime.execution.machine import MemoryUse, _from_proc
from xattn_runtime.profiling import (
    SCHEMA,
    ProfileDocument,
    ProfileOptions,
    Work,
    describe_machine,
    profile_matrix,
    read_document,
    trace_document,
    worker_process,
)
from xattn_runtime.profiling.floors import floor_ms
from xattn_runtime.profiling.measure import turns as turns_module
from xattn_runtime.profiling.measure.estimates import is_warm, quantile_interval, summarise
from xattn_runtime.profiling.measure.limits import Limits, product_rate, read_bandwidth
from xattn_runtime.profiling.measure.nodes import summarise_graph
from xattn_runtime.profiling.measure.probe_graphs import REFERENCE_INPUTS, product_graph, reference_graph
from xattn_runtime.profiling.measure.sensors import find_energy_counter

FEW = ProfileOptions(runs=3, nodes=False)


def test_a_caption(caption_bundle: Path) -> None:
    calls: list[float] = []
    traces: dict[Any, Any] = {}
    document = profile_matrix(
        [caption_bundle],
        threads=[1],
        options=ProfileOptions(runs=4),
        progress=lambda text, share: calls.append(share),
        traces=traces,
    )
    (profile,) = document.profiles
    assert calls == sorted(calls)
    assert calls[-1] == 1.0
    assert set(profile.stages) == {"preprocess", "encode", "decode", "total", "prefill", "step"}
    assert profile.passes == profile.stages["total"].n == 4
    assert len(profile.reference_ms) == len(profile.rounds["total"]) == sum(profile.process_rounds)
    assert 0 < profile.rounds["total"][0] <= 4 * profile.stages["total"].mean_ms
    assert (profile.threads, profile.provider, profile.task, profile.name) == (1, "cpu", "caption", "tiny-caption")
    parts = sum(profile.stages[stage].mean_ms for stage in ("preprocess", "encode", "decode"))
    assert profile.stages["total"].mean_ms >= parts
    tokens = 1 + profile.stages["step"].n / profile.stages["prefill"].n
    expected = 1000 * tokens / profile.stages["decode"].mean_ms
    assert profile.tokens_per_second == pytest.approx(expected)
    assert {graph.role for graph in profile.graphs} >= {"image_encoder", "decoder"}
    decoder = next(graph for graph in profile.graphs if graph.role == "decoder")
    assert decoder.work.operations["fp32"] > 0
    assert sum(decoder.operators.values()) == pytest.approx(sum(node.ms for node in decoder.nodes))
    assert profile.floors["step"].times == pytest.approx(profile.stages["step"].p50.ms / profile.floors["step"].ms)
    assert document.energy_source or document.energy_absent
    (roles,) = traces.values()
    events = trace_document(roles)["traceEvents"]
    assert {event["args"]["name"] for event in events if event["ph"] == "M"} == set(roles)


def test_the_matrix_takes_turns(caption_bundle: Path, vqa_bundle: Path, tmp_path: Path) -> None:
    document = profile_matrix([caption_bundle, vqa_bundle], threads=[1, 2], batches=[1], options=FEW)
    found = [(profile.task, profile.threads, profile.passes) for profile in document.profiles]
    assert found == [("caption", 1, 3), ("caption", 2, 3), ("vqa", 1, 3), ("vqa", 2, 3)]
    path = tmp_path / "profile.json"
    path.write_text(json.dumps(document.to_dict(), allow_nan=False))
    assert read_document(path)["schema"] == SCHEMA
    if sys.platform == "linux":
        first = document.profiles[0]
        assert 10e6 < (first.working_set_bytes or 0) < (first.peak_bytes or 0)


def test_several_processes_share_the_passes(caption_bundle: Path, vqa_bundle: Path, tmp_path: Path) -> None:
    shares: list[float] = []
    document = profile_matrix(
        [caption_bundle, tmp_path / "none.xattn", vqa_bundle],
        threads=[1],
        options=replace(FEW, runs=5, processes=3),
        progress=lambda text, share: shares.append(share),
    )
    assert [profile.passes for profile in document.profiles] == [5, 5]
    for profile in document.profiles:
        assert len(profile.process_rounds) == 3
        assert min(profile.process_rounds) >= 1
        assert len(profile.reference_ms) == sum(profile.process_rounds)
    assert len(document.failures) == 1
    assert shares == sorted(shares)


class Clock:
    """Stands for `time`: goes on only when something is done."""

    def __init__(self) -> None:
        self.now = 0.0

    def perf_counter(self) -> float:
        return self.now

    process_time = perf_counter


@pytest.mark.parametrize(
    ("seconds", "most", "expected"), [(1.5, 99, 3), (3.5, 99, 6), (0.1, 99, 1), (0.5, 99, 2), (9.0, 2, 2)]
)
def test_a_turn_ends_when_all_inputs_had_as_many(
    seconds: float, most: int, expected: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = Clock()

    class ThreeInputs:
        next_image = 0

        def run(self) -> dict[str, list[float]]:
            clock.now += 1
            self.next_image = (self.next_image + 1) % 3
            return {"total": [10.0 + self.next_image]}

    class Beside:
        def measure(self) -> list[list[float]]:
            return [[2.0, 2.0, 9.0], [8.0]]

    monkeypatch.setattr(turns_module, "time", clock)
    turn = turns_module.take_turn(ThreeInputs(), Beside(), seconds, most)  # type: ignore[arg-type]
    assert turn["passes"] == expected
    assert turn["reference_ms"] == pytest.approx(4.0)
    if expected % 3 == 0:
        assert turn["typical"]["total"] == pytest.approx(11.0)


def test_captions_go_together(caption_bundle: Path, vqa_bundle: Path) -> None:
    document = profile_matrix([caption_bundle, vqa_bundle], threads=[1], batches=[2], options=FEW)
    assert [(profile.task, profile.batch) for profile in document.profiles] == [("caption", 2)]
    assert "only captions go together" in document.failures[0].message


def test_what_fails_is_told_and_the_rest_measured(vqa_bundle: Path, tmp_path: Path) -> None:
    document = profile_matrix([tmp_path / "-none.xattn", vqa_bundle], ["cpu", "tensorrt"], [1], options=FEW)
    assert [profile.task for profile in document.profiles] == ["vqa"]
    assert [(one.provider, one.error) for one in document.failures] == [
        ("cpu", "BundleError"),
        ("tensorrt", "BundleError"),
        ("tensorrt", "ProviderError"),
    ]
    assert "expected a bundle folder, found nothing" in document.failures[0].message
    assert document.failures[2].user_can_mend
    assert "pip install" in document.failures[2].message


@pytest.mark.parametrize(
    ("script", "words"),
    [
        ("echo out of memory >&2\nkill -9 $$\n", "ended with signal 9, as when memory runs out: out of memory"),
        ("kill -11 $$\n", "ended with signal 11, a crash; update its driver"),
        ("exit 3\n", "ended with code 3; try it by `xattn-edge verify`"),
        ("sleep 60\n", "expected an answer within 0.5 s, found none; it was ended"),
    ],
)
@pytest.mark.skipif(sys.platform == "win32", reason="a shell script stands for the worker")
def test_a_worker_that_dies_or_hangs(
    caption_bundle: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, script: str, words: str
) -> None:
    python = tmp_path / "python"
    python.write_text(f"#!/bin/sh\n{script}")
    python.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(python))
    limit = 0.5 if "sleep" in script else 30.0
    document = profile_matrix([caption_bundle], options=replace(FEW, time_limit_s=limit))
    assert not document.profiles
    assert words in document.failures[0].message


def test_ctrl_c_keeps_what_was_measured(vqa_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    order = worker_process.WorkerProcess.order

    def interrupt(self: worker_process.WorkerProcess, do: str, **arguments: Any) -> Any:
        asked.append(do)
        if asked.count("turn") == 3:
            signal.raise_signal(signal.SIGINT)
        return order(self, do, **arguments)

    monkeypatch.setattr(worker_process.WorkerProcess, "order", interrupt)
    document = profile_matrix([vqa_bundle], threads=[1], options=ProfileOptions(runs=10**9))
    assert document.interrupted
    assert document.profiles[0].passes >= 2


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"options": ProfileOptions(runs=0)}, "runs: expected at least 1, found 0"),
        ({"threads": [0]}, "threads: expected 1 to [0-9]+, found 0"),
        ({"batches": [0]}, "batch: expected 1 to 1024, found 0"),
        ({"options": ProfileOptions(time_budget_s=0)}, "time budget: expected more than 0, found 0"),
        ({"providers": []}, "expected a bundle, a provider and a number of threads to profile, found none"),
    ],
)
def test_numbers_that_make_no_sense(caption_bundle: Path, changes: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=words):
        profile_matrix([caption_bundle], **changes)


def test_percentiles() -> None:
    found = summarise([float(i) for i in range(101)])
    assert (found.n, found.mean_ms, found.p50.ms, found.p90.ms, found.p99.ms) == (101, 50.0, 50.0, 90.0, 99.0)
    assert summarise([2.0]).p50.low_ms is None


def test_intervals_hold_the_median_as_often_as_they_say() -> None:
    generator = np.random.default_rng(3)
    held = 0
    for _ in range(400):
        low, high = quantile_interval(sorted(generator.exponential(size=40).tolist()), 0.5)
        held += low is not None and high is not None and low <= np.log(2) <= high
    assert 0.93 <= held / 400 <= 0.99


def test_warm_up_is_over_when_nothing_gets_faster() -> None:
    assert not is_warm([1.0] * 9)
    assert is_warm([1.0] * 10)
    assert not is_warm([2.0] * 5 + [1.0] * 5)
    assert is_warm([1.0] * 5 + [1.2] * 5)


@pytest.mark.parametrize("dtype", ["float32", "int8"])
def test_the_written_product_is_a_product(dtype: str) -> None:
    generator = np.random.default_rng(0)
    weight = generator.integers(-9, 9, (300, 5)).astype(dtype)
    inputs = generator.integers(0, 9, (4, 300)).astype("uint8" if dtype == "int8" else dtype)
    session = onnxruntime.InferenceSession(product_graph(4, weight), providers=["CPUExecutionProvider"])
    (found,) = session.run(None, {"x": inputs})
    np.testing.assert_allclose(found, inputs.astype(np.int64) @ weight.astype(np.int64), rtol=1e-5)


def test_the_written_reference_is_what_it_says() -> None:
    session = onnxruntime.InferenceSession(reference_graph(), providers=["CPUExecutionProvider"])
    inputs = {name: np.full(shape, 0.5, np.float32) for name, shape in REFERENCE_INPUTS.items()}
    y, less = session.run(["y", "less"], inputs)
    assert (y.shape, less.shape) == (REFERENCE_INPUTS["x"], REFERENCE_INPUTS["few"])
    expected: Any = inputs["few"]
    for _ in range(60):
        expected = 1 / (1 + np.exp(-np.tanh(expected)))
    np.testing.assert_allclose(less, expected, rtol=1e-5)
    # The error function of a softmax over 256.
    assert np.all((y > 0) & (y < 1))
    np.testing.assert_allclose(y.sum(axis=1), 2 / np.sqrt(np.pi), rtol=0.01)


def test_limits_are_of_a_sane_size() -> None:
    assert 1e8 < read_bandwidth(1) < 1e13
    assert 1e8 < product_rate(1) < 1e14


def test_little_memory_means_a_smaller_block_and_then_no_floors(
    caption_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []

    def ones(shape: Any, dtype: Any) -> Any:
        if not isinstance(shape, int):
            return np.full(shape, 1, dtype)
        asked.append(shape)
        raise MemoryError

    monkeypatch.setattr(np, "ones", ones)
    with pytest.raises(MemoryError):
        read_bandwidth(1)
    assert asked == [2**25, 2**24, 2**23]
    document = profile_matrix([caption_bundle], threads=[1], options=ProfileOptions(runs=2))
    assert (document.limits, document.profiles[0].floors) == ((), {})
    assert document.profiles[0].graphs


def test_the_longer_of_two_floors() -> None:
    limits = Limits(1, 1e9, {"fp32": 1e9, "int8": 2e9})
    assert floor_ms(Work({"fp32": 1e6, "int8": 2e6}, 1e6), limits) == (2.0, "arithmetic")
    assert floor_ms(Work({"fp32": 1e6}, 3e6), limits) == (3.0, "memory")


def kernel(name: str, operator: str, ts: int, dur: int, inputs: list[Any], outputs: list[Any]) -> dict[str, Any]:
    arguments = {"op_name": operator, "provider": "CPU", "input_type_shape": inputs, "output_type_shape": outputs}
    return {"ph": "X", "cat": "Node", "name": f"{name}_kernel_time", "ts": ts, "dur": dur, "args": arguments}


def test_work_and_layers_of_a_trace() -> None:
    product = kernel("layers.0.query/MatMul", "MatMul", 11, 40, [{"float": [1, 3, 8]}], [{"float": [1, 3, 4]}])
    small = kernel("layers.0/Add.2", "Add", 60, 10, [{"float": [1, 3, 4]}] * 2, [{"float": [1, 3, 4]}])
    warm = [{**event, "ts": event["ts"] + 1000} for event in (product, small)]
    runs = [{"ph": "X", "name": "model_run", "ts": ts, "dur": 100} for ts in (10, 1010)]
    graph = summarise_graph("decoder", [*runs, product, small, *warm], warmup=1)
    assert graph is not None
    assert (graph.runs, graph.ms) == (1, 0.1)
    assert graph.work == Work({"fp32": 2 * 3 * 8 * 4}, 4 * (3 * 8 + 3 * 4 + 8 * 4))
    assert graph.layers == {"layers.0.query": 0.04, "layers.0": 0.01}
    assert graph.between_ms == pytest.approx(0.05)
    assert summarise_graph("decoder", [product]) is None


def test_energy_where_linux_shows_it(tmp_path: Path) -> None:
    assert "no counter" in (find_energy_counter(tmp_path).absent or "")
    package = tmp_path / "class" / "powercap" / "intel-rapl:0"
    package.mkdir(parents=True)
    assert "cannot be read" in (find_energy_counter(tmp_path).absent or "")
    (package / "energy_uj").write_text("2500000\n")
    counter = find_energy_counter(tmp_path)
    assert counter.source == "rapl"
    assert counter.read is not None
    assert counter.read() == 2.5


def test_memory_of_proc(tmp_path: Path) -> None:
    status = tmp_path / "status"
    status.write_text("Name:\tx\nVmHWM:\t    2048 kB\nVmRSS:\t    1024 kB\n")
    assert _from_proc(status) == MemoryUse(1024 * 1024, 2048 * 1024)
    status.write_text("Name:\tx\n")
    assert _from_proc(status) == MemoryUse(None, None, f"{status} does not say VmRSS and VmHWM")
    assert _from_proc(tmp_path / "none").peak_bytes is None


def test_machine() -> None:
    machine = describe_machine()
    assert machine.cores >= 1
    assert machine.system
    assert machine.architecture
    assert machine.cpu


def test_a_document_is_json(vqa_bundle: Path) -> None:
    document: ProfileDocument = profile_matrix([vqa_bundle], threads=[1], options=FEW)
    values = json.loads(json.dumps(document.to_dict(), allow_nan=False))
    assert values["profiles"][0]["stages"]["total"]["p50"]["ms"] > 0
    assert values["machine"]["cores"] >= 1
