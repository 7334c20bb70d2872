"""How fast a bundle is and what memory it takes, a stage at a time."""

from __future__ import annotations

from xattn_runtime.profile.machine import Machine, PeakMemory, describe_machine
from xattn_runtime.profile.measure import profile_bundle
from xattn_runtime.profile.process import profile_in_process
from xattn_runtime.profile.report import ProfileReport, StageTiming

__all__ = [
    "Machine",
    "PeakMemory",
    "ProfileReport",
    "StageTiming",
    "describe_machine",
    "profile_bundle",
    "profile_in_process",
]
