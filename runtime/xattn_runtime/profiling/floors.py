"""The least time that a stage can take here, and what sets it: a roofline (Williams, Waterman and Patterson, 2009)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from xattn_runtime.profiling.document import Floor
from xattn_runtime.profiling.measure.estimates import StageTiming
from xattn_runtime.profiling.measure.limits import Limits
from xattn_runtime.profiling.measure.nodes import GraphTime, Work

__all__ = ["OVERHEAD", "find_floors", "floor_ms"]

OVERHEAD = 3.0
"""A stage that takes so many times its floor is bound by something else than memory and arithmetic."""

# The graphs that a stage runs, once each; the first of them that there is.
_GRAPHS = {
    "encode": ("image_encoder",),
    "step": ("decoder",),
    "decode": ("generator",),
    "answer": ("classifier", "generator"),
    "embed_text": ("text_encoder",),
}


def find_floors(stages: Mapping[str, StageTiming], graphs: Sequence[GraphTime], limits: Limits) -> dict[str, Floor]:
    """Stage → floor, where the stage is a run of a graph whose work is known."""
    by_role = {graph.role: graph for graph in graphs}
    floors = {}
    for stage, roles in _GRAPHS.items():
        graph = next((by_role[role] for role in roles if role in by_role), None)
        if graph is None or stage not in stages or not graph.work.bytes:
            continue
        ms, bound = floor_ms(graph.work, limits)
        times = stages[stage].p50.ms / ms
        floors[stage] = Floor(ms, times, "overhead" if times > OVERHEAD else bound)
    return floors


def floor_ms(work: Work, limits: Limits) -> tuple[float, str]:
    """Milliseconds, and "memory" or "arithmetic", whichever takes longer; the two go on at once."""
    memory = work.bytes / limits.bytes_per_second
    arithmetic = sum(count / limits.operations_per_second[name] for name, count in work.operations.items())
    return (1000 * memory, "memory") if memory > arithmetic else (1000 * arithmetic, "arithmetic")
