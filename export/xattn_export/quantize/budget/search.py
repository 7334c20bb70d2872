"""The search for a mix of modes that loses at most a budget: which to measure next, and which to recommend.

It knows numbers and names; `selection.py` makes and measures the bundles.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from xattn_export.quantize.base.mode_spec import BASELINE
from xattn_export.quantize.base.options import Mode

__all__ = ["Measured", "Prefer", "Space", "candidates", "cost", "frontier", "named"]

Prefer = Literal["size", "speed", "memory"]
Components = Mapping[str, Mode]

# Losses of components add up only roughly: mixes that are predicted to lose so many budgets are tried all the same.
_HOPE = 2.0
_MOST_TRIES = 12
_ENOUGH = 6
_RAISED = (1, 2, 4, 8, 16)
# Times of one and the same bundle differ by as much from run to run.
_SAME_TIME = 1.05


@dataclass(frozen=True)
class Measured:
    """A mix as it was measured.

    components: role, or role/layer, → mode; what is not named is fp32. score: of the task, the higher the better. loss:
    the share of the fp32 bundle's score that is lost; infinite where no bundle could be made; `failure` holds the
    reason. bytes: of the bundle. time: of an answer, as a multiple of the fp32 bundle's. memory_mb: the peak of a
    process.
    """

    components: Components
    score: float
    loss: float
    bytes: int
    time: float
    memory_mb: float
    failure: str | None = None


@dataclass(frozen=True)
class Space:
    """What can be chosen: role → modes, role → names of its layers, mode → that of layers that lose too much in it."""

    modes: Mapping[str, Sequence[Mode]]
    layers: Mapping[str, Sequence[str]]
    milder: Mapping[Mode, Mode]


def named(components: Components) -> str:
    """The mix in words, as `--component` has it."""
    return " ".join(f"{name}={mode}" for name, mode in components.items()) or BASELINE


def cost(measured: Measured, prefer: Prefer) -> float:
    """What is to be small."""
    return {"size": float(measured.bytes), "speed": measured.time, "memory": measured.memory_mb}[prefer]


def candidates(
    space: Space, budget: float, prefer: Prefer, measure: Callable[[Components], Measured]
) -> Iterator[Measured]:
    """Measure one mix after the other, and yield each.

    First every component in every mode alone; then mixes of components, the most promising first, until a few keep to
    the budget, since the first may not do so on other samples; then the layers of the component that stands in the way
    of a better mix, one at a time, and mixes in which the costliest of them stay more precise.
    """
    baseline = measure({})
    yield baseline
    alone: dict[tuple[str, Mode], Measured] = {}
    for role, modes in space.modes.items():
        for mode in modes:
            alone[role, mode] = measure({role: mode})
            yield alone[role, mode]
    within = [one for one in alone.values() if one.loss <= budget]
    best = min(within, key=lambda one: cost(one, prefer), default=None)
    enough = _ENOUGH
    rejected: list[Measured] = []
    for components in _mixes(space, budget, prefer, baseline, alone):
        mix = measure(components)
        yield mix
        if mix.loss > budget:
            rejected.append(mix)
            continue
        best = min((one for one in (best, mix) if one is not None), key=lambda one: cost(one, prefer))
        enough -= 1
        if not enough:
            break
    cheaper = [mix for mix in rejected if best is None or cost(mix, prefer) < cost(best, prefer)]
    if cheaper and (nearest := min(cheaper, key=lambda one: (one.loss, cost(one, prefer)))).loss < math.inf:
        yield from _with_layers(space, budget, nearest, alone, measure)


def frontier(results: Sequence[Measured], budget: float, prefer: Prefer) -> list[Measured]:
    """Those within the budget that none other beats in both time and size, the preferred first."""
    within = [one for one in results if one.loss <= budget and one.components]
    optimal = [one for one in within if not any(_beats(other, one) for other in within)]
    return sorted(optimal, key=lambda one: cost(one, prefer))


def _beats(one: Measured, other: Measured) -> bool:
    return one.bytes < other.bytes and one.time * _SAME_TIME < other.time


def _mixes(
    space: Space, budget: float, prefer: Prefer, baseline: Measured, alone: Mapping[tuple[str, Mode], Measured]
) -> list[dict[str, Mode]]:
    """Mixes of two or more components by predicted cost, without those that are predicted to lose far too much."""
    choices = [[(role, BASELINE), *((role, mode) for mode in modes)] for role, modes in space.modes.items()]
    predicted = []
    for mix in itertools.product(*choices):
        parts = [alone[part] for part in mix if part[1] != BASELINE]
        if len(parts) < 2:
            continue
        loss = sum(max(0.0, part.loss) for part in parts)
        total = cost(baseline, prefer) + sum(cost(part, prefer) - cost(baseline, prefer) for part in parts)
        if loss <= max(_HOPE * budget, min(part.loss for part in alone.values())) and loss < math.inf:
            predicted.append((total, {role: mode for role, mode in mix if mode != BASELINE}))
    predicted.sort(key=lambda pair: pair[0])
    return [dict(mix) for _, mix in predicted[:_MOST_TRIES]]


def _with_layers(
    space: Space,
    budget: float,
    mix: Measured,
    alone: Mapping[tuple[str, Mode], Measured],
    measure: Callable[[Components], Measured],
) -> Iterator[Measured]:
    """Mixes like `mix`, but for the costliest layers of its costliest component."""
    role = max(mix.components, key=lambda name: alone[name, mix.components[name]].loss)
    mode = mix.components[role]
    costs = []
    for layer in space.layers[role]:
        alone_in_it = measure({f"{role}/{layer}": mode})
        yield alone_in_it
        if alone_in_it.failure is None:
            costs.append((alone_in_it.loss, layer))
    costs.sort(reverse=True)
    for count in (number for number in _RAISED if number < len(costs)):
        raised = {f"{role}/{layer}": space.milder[mode] for _, layer in costs[:count]}
        result = measure({**mix.components, **raised})
        yield result
        if result.loss <= budget:
            return
