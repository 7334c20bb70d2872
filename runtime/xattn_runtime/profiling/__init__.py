"""How fast bundles are here, what limits them, and what memory they take, a stage at a time."""

from __future__ import annotations

from xattn_runtime.execution.machine import Machine, describe_machine
from xattn_runtime.profiling.document import (
    SCHEMA,
    Failure,
    Floor,
    Profile,
    ProfileDocument,
    read_document,
)
from xattn_runtime.profiling.matrix import ProfileOptions, profile_matrix
from xattn_runtime.profiling.measure.estimates import Percentile, StageTiming
from xattn_runtime.profiling.measure.limits import Limits, measure_limits
from xattn_runtime.profiling.measure.nodes import GraphTime, NodeTime, Work, trace_document
from xattn_runtime.profiling.worker_process import ProfileCombination

__all__ = [
    "SCHEMA",
    "Failure",
    "Floor",
    "GraphTime",
    "Limits",
    "Machine",
    "NodeTime",
    "Percentile",
    "Profile",
    "ProfileCombination",
    "ProfileDocument",
    "ProfileOptions",
    "StageTiming",
    "Work",
    "describe_machine",
    "measure_limits",
    "profile_matrix",
    "read_document",
    "trace_document",
]
