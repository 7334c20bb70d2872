"""What this device can do at best: bytes read a second, and multiplications a second in each precision.

The measurements take about a second together, and nothing else may run beside them.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from xattn_runtime.execution.providers import CPU, load_onnxruntime
from xattn_runtime.profiling.measure.probe_graphs import product_graph

__all__ = ["Limits", "measure_limits", "product_rate", "read_bandwidth"]

_READ_BYTES = 2**28
# Less than this lies in the caches of large processors.
_LEAST_READ_BYTES = 2**26
_REPEATS = 5
# Rows and columns such that the weights lie in the caches and every core has its part.
_ROWS, _INNER, _COLUMNS = 512, 768, 1536
_PRECISIONS = {"fp32": np.float32, "int8": np.int8}


@dataclass(frozen=True)
class Limits:
    """bytes_per_second: read from memory. operations_per_second: by precision, a multiplication and its sum being two.

    threads: that took part.
    """

    threads: int
    bytes_per_second: float
    operations_per_second: Mapping[str, float]


def measure_limits(threads: int) -> Limits:
    """This CPU's with so many threads: of several tries the best. MemoryError where there is not enough of it."""
    rates = {name: product_rate(threads, dtype) for name, dtype in _PRECISIONS.items()}
    return Limits(threads, read_bandwidth(threads), rates)


def read_bandwidth(threads: int) -> float:
    """Bytes a second that summing 256 MiB reads, each thread its part; half as much for as long as memory is short."""
    block = _block(_READ_BYTES)
    parts = np.array_split(block, threads)
    with ThreadPoolExecutor(threads) as pool:
        seconds = _best(lambda: list(pool.map(np.sum, parts)))
    return block.nbytes / seconds


def product_rate(threads: int, dtype: Any = np.float32) -> float:
    """Operations a second of a product of 512×768 and 768×1536 in ONNX Runtime."""
    generator = np.random.default_rng(0)
    integer = dtype == np.int8
    weight = generator.integers(-127, 128, (_INNER, _COLUMNS)) if integer else generator.normal(size=(_INNER, _COLUMNS))
    weight = weight.astype(dtype)
    inputs = generator.integers(0, 256, (_ROWS, _INNER)) if integer else generator.normal(size=(_ROWS, _INNER))
    inputs = inputs.astype(np.uint8 if integer else dtype)
    onnxruntime = load_onnxruntime()
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = threads, 4
    session = onnxruntime.InferenceSession(
        product_graph(_ROWS, weight), sess_options=options, providers=[CPU.onnxruntime_name]
    )
    seconds = _best(lambda: session.run(None, {"x": inputs}), 6 * _REPEATS)
    return 2 * _ROWS * _INNER * _COLUMNS / seconds


def _block(size: int) -> NDArray[np.float64]:
    try:
        return np.ones(size // 8, dtype=np.float64)
    except MemoryError:
        if size // 2 < _LEAST_READ_BYTES:
            raise
        return _block(size // 2)


def _best(work: Callable[[], object], repeats: int = _REPEATS) -> float:
    work()
    times = []
    for _ in range(repeats):
        began = time.perf_counter()
        work()
        times.append(time.perf_counter() - began)
    return min(times)
