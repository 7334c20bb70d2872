"""A fixed piece of work beside the measured one, by which a slower machine is told from a slower bundle.

It runs in the worker's own process, on ONNX Runtime and as many threads, since what slows a bundle down (a clock, a
neighbour on the same core) has to slow this down too. Always on the CPU provider.
"""

from __future__ import annotations

import time

import numpy as np

from xattn_runtime.profile.probe_graphs import REFERENCE_INPUTS, reference_graph
from xattn_runtime.providers import CPU, load_onnxruntime

__all__ = ["Reference"]

_TIMES = 8


class Reference:
    """The loaded work."""

    def __init__(self, threads: int) -> None:
        """Threads that do not spin: they would take cores from the sessions that are measured."""
        onnxruntime = load_onnxruntime()
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads, options.log_severity_level = threads, 4
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        self._session = onnxruntime.InferenceSession(
            reference_graph(), sess_options=options, providers=[CPU.onnxruntime_name]
        )
        generator = np.random.default_rng(1)
        self._inputs = {
            name: generator.normal(size=shape).astype(np.float32) for name, shape in REFERENCE_INPUTS.items()
        }

    def measure(self) -> list[float]:
        """Milliseconds of each of a few runs, after one that is not counted."""
        self._session.run(None, self._inputs)
        times = []
        for _ in range(_TIMES):
            began = time.perf_counter()
            self._session.run(None, self._inputs)
            times.append(1000 * (time.perf_counter() - began))
        return times
