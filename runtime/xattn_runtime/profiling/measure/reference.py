"""Fixed pieces of work beside the measured one, by which a slower machine is told from a slower bundle.

They run in the worker's own process, on ONNX Runtime and as many threads, since what slows a bundle down (a clock, a
neighbour on the same core, in the shared cache, or at the memory) has to slow these down too. Always on the CPU
provider.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from statistics import geometric_mean, median

import numpy as np

from xattn_runtime.execution.providers import CPU, load_onnxruntime
from xattn_runtime.profiling.measure.probe_graphs import REFERENCE_INPUTS, product_graph, reference_graph

__all__ = ["Reference", "typical_ms"]

_TIMES = (8, 4, 4)
_STREAM = (512, 6144)  # 12 MiB of weights, which a product of one row reads once
_SCATTERED, _READS = 2**21, 30_000  # floats, 8 MiB of them, and how many are read here and there


class Reference:
    """Three pieces: what keeps the core busy, what reads in a row, and what reads here and there."""

    def __init__(self, threads: int) -> None:
        """Threads that do not spin: they would take cores from the sessions that are measured."""
        onnxruntime = load_onnxruntime()
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads, options.log_severity_level = threads, 4
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        generator = np.random.default_rng(1)
        weights = generator.normal(0, _STREAM[0] ** -0.5, _STREAM).astype(np.float32)

        def running(graph: bytes, shapes: dict[str, tuple[int, int]]) -> Callable[[], object]:
            session = onnxruntime.InferenceSession(graph, sess_options=options, providers=[CPU.onnxruntime_name])
            inputs = {name: generator.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}
            return lambda: session.run(None, inputs)

        scattered = np.arange(_SCATTERED, dtype=np.float32)
        places = generator.integers(0, _SCATTERED, _READS)
        self._pieces: tuple[Callable[[], object], ...] = (
            running(reference_graph(), REFERENCE_INPUTS),
            running(product_graph(1, weights), {"x": (1, _STREAM[0])}),
            lambda: scattered.take(places),
        )

    def measure(self) -> list[list[float]]:
        """Of each piece, the milliseconds of each of a few runs, after one that is not counted."""
        times_ms = []
        for piece, count in zip(self._pieces, _TIMES, strict=True):
            piece()
            times = []
            for _ in range(count):
                began = time.perf_counter()
                piece()
                times.append(1000 * (time.perf_counter() - began))
            times_ms.append(times)
        return times_ms


def typical_ms(before: Sequence[Sequence[float]], after: Sequence[Sequence[float]]) -> float:
    """The geometric mean over the pieces of the median of what two measurements found."""
    return geometric_mean([median([*one, *other]) for one, other in zip(before, after, strict=True)])
