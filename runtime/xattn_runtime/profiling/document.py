"""The results of profiling, written to JSON and read again. `docs/profiling.md` says what each number means.

Only the shape; how things are measured is in the modules beside it.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from xattn_runtime.errors import UserError
from xattn_runtime.execution.machine import Machine
from xattn_runtime.json_reader import one_line, show
from xattn_runtime.profiling.measure.estimates import StageTiming
from xattn_runtime.profiling.measure.limits import Limits
from xattn_runtime.profiling.measure.nodes import GraphTime
from xattn_runtime.profiling.measure.sensors import Drift

__all__ = ["SCHEMA", "Failure", "Floor", "Profile", "ProfileDocument", "read_document"]

SCHEMA = "xattn-edge/profile/3"
"""The name and version of the JSON. What is added keeps the version; what changes its meaning raises it."""


@dataclass(frozen=True)
class Floor:
    """The least that a stage can take on this device: milliseconds of one run of its graph.

    bound: what sets it, "memory" or "arithmetic", or "overhead" where the stage takes more than three times as long.
    times: the stage's median over it.
    """

    ms: float
    times: float
    bound: str


@dataclass(frozen=True)
class Profile:
    """One bundle on one provider with so many threads and images at once.

    rounds: stage → the median of each image's passes, and of these the mean, in each round, in milliseconds, which
    `--against` compares; reference_ms: that of fixed pieces of work, in the same process, by which a slower machine is
    told from a slower bundle; process_rounds: how many of the rounds were each process's, one process after another.
    load_cold_ms: in a fresh process, with the files out of the page cache as far as the system obeys; load_warm_ms:
    again, in the same process. cpu_ms: of all threads, a pass.
    energy_j: a pass. peak_bytes: of the process, at most in loading and the first pass; steady_bytes: after the last
    round. working_set_bytes: what loading and the first pass added. metric: `name` and `value` of what the bundle
    last scored on held-out data, as its manifest says. tokens_per_second: generated tokens over decode.
    """

    bundle: str
    name: str
    task: str
    bundle_bytes: int
    provider: str
    threads: int
    batch: int
    passes: int
    warmup_passes: int
    load_cold_ms: float
    load_warm_ms: float
    stages: Mapping[str, StageTiming]
    rounds: Mapping[str, list[float]]
    reference_ms: tuple[float, ...]
    process_rounds: tuple[int, ...]
    tokens_per_second: float | None
    cpu_ms: float
    energy_j: float | None
    peak_bytes: int | None
    steady_bytes: int | None
    working_set_bytes: int | None
    memory_unknown_because: str | None
    onnxruntime_version: str
    metric: Mapping[str, Any] | None
    floors: Mapping[str, Floor] = field(default_factory=dict)
    graphs: tuple[GraphTime, ...] = ()


@dataclass(frozen=True)
class Failure:
    """A combination that could not be measured. error: the kind. user_can_mend: whether its exit code would be 2."""

    bundle: str
    provider: str
    threads: int | None
    batch: int
    error: str
    message: str
    user_can_mend: bool


@dataclass(frozen=True)
class ProfileDocument:
    """All that one call of `profile` measured.

    energy_source: what counts joules; None, and energy_absent says why, where nothing does. host: where all of it was
    measured, as `--host` named it; None for the machine that `profile` ran on.
    """

    machine: Machine
    limits: tuple[Limits, ...]
    profiles: tuple[Profile, ...]
    failures: tuple[Failure, ...]
    energy_source: str | None
    energy_absent: str | None
    temperature_c: Drift
    clock_mhz: Drift
    interrupted: bool
    created: str
    version: str
    host: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """JSON values."""
        return {"schema": SCHEMA, **asdict(self)}


def read_document(path: str | os.PathLike[str]) -> dict[str, Any]:
    """The JSON values of a document that was written before.

    Raises:
        UserError: it cannot be read, is no such document, or of another version.
    """
    try:
        values = json.loads(Path(path).read_bytes())
    except (OSError, ValueError) as error:
        raise UserError(
            f"{os.fspath(path)}: expected what `xattn-edge profile --json` wrote, found: {one_line(error)}"
        ) from error
    schema = values.get("schema") if isinstance(values, dict) else None
    if schema != SCHEMA:
        raise UserError(
            f"{os.fspath(path)}: expected a profile of schema {SCHEMA}, found {show(schema)}; profile again"
        )
    profiles = values.get("profiles")
    if not isinstance(profiles, list):
        raise UserError(f"{os.fspath(path)}: expected profiles, found a document without; profile again")
    return dict(values)
