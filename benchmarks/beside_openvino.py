"""The same graphs in ONNX Runtime and in OpenVINO, on the CPU, with the same number of threads.

    python benchmarks/beside_openvino.py BUNDLE... [--threads 2] [--rounds 20]

Each graph of each bundle runs on random inputs: pixels, or one token after a cache of 10. Both engines are in this
process, taking turns; what counts is the ratio. Prints a Markdown table. A graph with a `Loop` is left out.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import openvino

from xattn_export.engines.signature import DeclaredTensor, read_signature
from xattn_runtime.bundle.folder import open_bundle
from xattn_runtime.execution.loading import session_entries
from xattn_runtime.execution.providers import load_onnxruntime

AXES = {"batch": 1, "past": 10, "length": 1, "regions": 36}
DTYPES = {
    "tensor(int64)": np.int64,
    "tensor(float)": np.float32,
    "tensor(float16)": np.float16,
    "tensor(int8)": np.int8,
}


def sample(tensor: DeclaredTensor, rng: np.random.Generator) -> np.ndarray[Any, Any]:
    """Normal numbers, ones for a mask and small ids."""
    shape = [axis if isinstance(axis, int) else AXES.get(str(axis), 8) for axis in tensor.shape]
    dtype = DTYPES[tensor.type]
    if dtype in (np.int64, np.int8):
        return np.ones(shape, dtype)
    return rng.normal(size=shape).astype(dtype)


def in_onnxruntime(path: Path, entries: dict[str, str], threads: int) -> Callable[[dict[str, Any]], object]:
    """As the runtime sets it up."""
    onnxruntime = load_onnxruntime()
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    for key, value in {**entries, "session.force_spinning_stop": "1"}.items():
        options.add_session_config_entry(key, value)
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    return lambda inputs: session.run(None, inputs)


def in_openvino(path: Path, threads: int) -> Callable[[dict[str, Any]], object]:
    """With its own defaults, for latency."""
    core = openvino.Core()
    settings = {"INFERENCE_NUM_THREADS": threads, "PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": "f32"}
    compiled = core.compile_model(core.read_model(path), "CPU", settings)
    request = compiled.create_infer_request()
    return lambda inputs: request.infer(inputs, share_inputs=True)


def milliseconds(run: Callable[[dict[str, Any]], object], inputs: dict[str, Any]) -> float:
    """Of one run."""
    began = time.perf_counter()
    run(inputs)
    return (time.perf_counter() - began) * 1000


def main() -> None:
    """Parse, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundles", nargs="+", type=Path)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=20)
    arguments = parser.parse_args()
    print(
        "| graph | precision | ONNX Runtime, ms | OpenVINO, ms | OpenVINO / ONNX Runtime |",
        "|---|---|---|---|---|",
        sep="\n",
    )
    for folder in arguments.bundles:
        bundle = open_bundle(folder)
        for role, graph in bundle.manifest.graphs.items():
            if role in ("generator", "whole", "whole_text"):
                continue
            path, rng = bundle.file(graph.file), np.random.default_rng(0)
            inputs = {tensor.name: sample(tensor, rng) for tensor in read_signature(path).inputs}
            ours = in_onnxruntime(path, session_entries(bundle.manifest), arguments.threads)
            theirs = in_openvino(path, arguments.threads)
            times = [(milliseconds(ours, inputs), milliseconds(theirs, inputs)) for _ in range(arguments.rounds)]
            settled = times[len(times) // 4 :]
            first, second = (statistics.median(column) for column in zip(*settled, strict=True))
            ratio = statistics.median(other / own for own, other in settled)
            print(f"| {bundle.manifest.name} {role} | {graph.precision} | {first:.1f} | {second:.1f} | {ratio:.2f} |")


if __name__ == "__main__":
    main()
