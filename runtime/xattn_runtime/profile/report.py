"""What profiling a bundle gives: numbers with their units, to and from JSON.

Only the shape of the report; how it is measured is in `measure.py`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from xattn_runtime.profile.machine import Machine, PeakMemory

__all__ = ["ProfileReport", "StageTiming", "summarise"]


@dataclass(frozen=True)
class StageTiming:
    """How long a stage took, over `n` measurements: median, 90th and 99th percentile, mean, in milliseconds."""

    n: int
    p50_ms: float
    p90_ms: float
    p99_ms: float
    mean_ms: float


@dataclass(frozen=True)
class ProfileReport:
    """One bundle on one provider.

    load_ms: opening the bundle with all its checks, the graphs and the tokenizer; the import of ONNX Runtime is not
    in it. stages: for captioning preprocess, encode, decode (the whole caption) and total, and the same tokens computed
    one by one, as when they are streamed: prefill (the first) and step (each later one; missing where no caption has a
    second); for visual question answering preprocess, encode, answer and total.
    tokens_per_second: generated tokens, end tokens included, over decode; None without decoding.
    """

    bundle: str
    name: str
    task: str
    provider: str
    threads: int
    runs: int
    warmup: int
    load_ms: float
    stages: Mapping[str, StageTiming]
    tokens_per_second: float | None
    peak_memory: PeakMemory
    onnxruntime_version: str
    machine: Machine

    def to_dict(self) -> dict[str, Any]:
        """The report as JSON values."""
        return asdict(self)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> ProfileReport:
        """The report that `to_dict` gave; TypeError or KeyError for anything else."""
        nested = {
            "stages": {stage: StageTiming(**values) for stage, values in data["stages"].items()},
            "peak_memory": PeakMemory(**data["peak_memory"]),
            "machine": Machine(**data["machine"]),
        }
        return cls(**{**data, **nested})


def summarise(times_ms: Sequence[float]) -> StageTiming:
    """Percentiles, linear between measurements, and mean of at least one measurement."""
    p50, p90, p99 = (float(value) for value in np.percentile(times_ms, [50, 90, 99]))
    return StageTiming(len(times_ms), p50, p90, p99, float(np.mean(times_ms)))
