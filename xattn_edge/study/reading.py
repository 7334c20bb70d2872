"""The compact reading of a study: what was measured, the grid of mechanisms and fusions, and what their means say."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from xattn_edge.study.effects import Effects, Means, effects_of
from xattn_edge.study.measured import CombinationResult
from xattn_edge.study.plan import StudyPlan, described

__all__ = ["coverage", "grid_lines"]


def coverage(rows: Sequence[CombinationResult]) -> str:
    """How many combinations of the library were measured, with how many seeds, and which were not."""
    every = [(described(each), each.fusion) for each in StudyPlan().combinations]
    seeds = Counter(len(each.accuracies) for each in rows if each.forbidden is None)
    measured = sum(seeds.values())
    refused = len(rows) - measured
    counts = [f"{number} with {_seeds(count)}" for count, number in sorted(seeds.items(), reverse=True)]
    text = f"Of {len(every)} combinations of mechanism and fusion {measured} are measured: {', '.join(counts)}."
    if refused:
        text += f" {refused} {'is' if refused == 1 else 'are'} refused."
    if min(seeds) == 1:
        text += " Of one seed alone nothing is known of the spread."
    missing: dict[str, list[str]] = {}
    for mechanism, fusion in every:
        if (mechanism, fusion) not in {(each.mechanism, each.fusion) for each in rows}:
            missing.setdefault(mechanism, []).append(fusion)
    return f"{text} Not measured: {_missing(missing)}." if missing else text


def _seeds(count: int) -> str:
    return f"{count} seed{'s' * (count > 1)}"


def _missing(missing: dict[str, list[str]]) -> str:
    """By fusions, the mechanisms that lack the same ones together."""
    fusions = list(dict.fromkeys(each.fusion for each in StudyPlan().combinations))
    alike: dict[tuple[str, ...], list[str]] = {}
    for mechanism, without in missing.items():
        alike.setdefault(tuple(without), []).append(mechanism)
    parts = []
    for absent, mechanisms in alike.items():
        present = [fusion for fusion in fusions if fusion not in absent]
        if not present:
            what = "any fusion"
        elif len(present) < len(absent):
            what = f"any fusion but {_names(present)}"
        else:
            what = _names(absent)
        parts.append(f"{_names(mechanisms)} with {what}")
    return "; ".join(parts)


def grid_lines(measured: Sequence[CombinationResult]) -> list[str]:
    """A table of mean accuracy, mechanisms down and fusions across, with the means of both, and what they say."""
    cells = {(each.mechanism, each.fusion): each for each in measured}
    order = [(described(each), each.fusion) for each in StudyPlan().combinations]
    mechanisms = [name for name in dict.fromkeys(each[0] for each in order) if any(name == key[0] for key in cells)]
    fusions = [name for name in dict.fromkeys(each[1] for each in order) if any(name == key[1] for key in cells)]
    places = [(mechanism, fusion) for mechanism in mechanisms for fusion in fusions]
    effects = effects_of({place: cells[place].accuracies for place in places if place in cells})
    lines = [
        f"| accuracy, % | {' | '.join(f'`{name}`' for name in fusions)} | mean |",
        "|---" * (len(fusions) + 2) + "|",
    ]
    for mechanism in mechanisms:
        row = [_cell(cells.get((mechanism, fusion))) for fusion in fusions]
        lines.append(f"| {' | '.join([mechanism, *row, _mean(effects.mechanisms if effects else None, mechanism)])} |")
    if effects is None:
        return [*lines, "", "Means over a row or column would compare unlike things, as the table has gaps."]
    means = [_mean(effects.fusions, fusion) for fusion in fusions]
    return [*lines, f"| {' | '.join(['mean', *means, ''])} |", "", *_reading(effects, mechanisms)]


def _cell(each: CombinationResult | None) -> str:
    if each is None:
        return "–"
    return f"{each.mean:.1f}" + ("" if each.deviation is None else f" ± {each.deviation:.1f}")


def _mean(side: Means | None, name: str) -> str:
    if side is None or name not in side.means:
        return "–"
    return f"**{side.means[name]:.1f}** ± {side.half_interval:.1f}"


def _reading(effects: Effects, mechanisms: Sequence[str]) -> list[str]:
    left_out = [name for name in mechanisms if name not in effects.mechanisms.means]
    if effects.seeds > 1:
        source = f"from how the mean differs over {effects.seeds} seeds beyond what all share"
    else:
        source = (
            "from how unevenly it comes about on the other side of the table; what luck the one seed brought to a "
            "whole row or column is not in it, so that the intervals are too narrow rather than too wide"
        )
    within = " In a cell, ± is the standard deviation over seeds." if effects.seeds > 1 else ""
    by_mechanism, by_fusion, left = (100 * share for share in effects.shares)
    return [
        f"Means are over a row or a column; ± is half a 95 % interval, {source}.{within}"
        + (f" Not in the means, as they lack fusions: {_names(left_out)}." if left_out else ""),
        "",
        _side("Mechanisms, over all fusions", effects.mechanisms),
        _side("Fusions, over all mechanisms", effects.fusions),
        f"- Of the variance between cells {by_mechanism:.0f} % go with the mechanism, {by_fusion:.0f} % with the "
        f"fusion, {left:.0f} % with neither alone: their interplay, and chance.",
    ]


def _names(names: Sequence[str]) -> str:
    return ", ".join(f"`{name}`" for name in names)


def _side(what: str, side: Means) -> str:
    text = f"- {what}: `{side.highest}` is highest with {side.means[side.highest]:.1f} %"
    alike = side.like_highest
    text += f"; not distinguished from it: {_names(alike)}" if alike else ""
    lower = [name for name in sorted(side.means, key=lambda name: -side.means[name]) if name not in alike][1:]
    text += f"; lower: {_names(lower)}" if lower else ""
    return f"{text}. Two are distinguished when more than {side.least_difference:.1f} points lie between them."
