"""A profile as tables on the terminal, from the JSON values of its document."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from xattn_edge.commands.shared.console import Console, cell

if TYPE_CHECKING:
    from xattn_runtime.profiling.regression_gate import Change

__all__ = ["print_changes", "print_profile"]

_LONGEST_LAYERS = 5
_STAGES = ("bundle", "provider", "threads", "stage", "p50 ms", "95 %", "p90 ms", "p99 ms", "floor ms", "×", "bound by")
_SUMMARY = (
    "bundle",
    "provider",
    "threads",
    "passes",
    "load cold ms",
    "warm ms",
    "tokens/s",
    "CPU ms",
    "J",
    "peak MB",
    "now MB",
    "bundle MB",
)
_CHANGES = ("model", "provider", "threads", "stage", "before ms", "now ms", "change", "95 %", "seen from", "verdict")


def print_profile(console: Console, document: Mapping[str, Any]) -> None:
    """What was measured, where, and what could not be."""
    for failure in document["failures"][1:]:
        console.note(f"not measured: {failure['message']}")
    profiles = document["profiles"]
    if not profiles:
        return
    _show(console, [_STAGES, *(row for profile in profiles for row in _stages(profile))])
    _show(console, [_SUMMARY, *map(_summary, profiles)])
    for profile in profiles:
        for graph in profile["graphs"]:
            longest = list(graph["layers"].items())[:_LONGEST_LAYERS]
            layers = ", ".join(f"{name or '(no layer)'} {ms:.3g}" for name, ms in longest)
            console.note(f"{profile['bundle']} {graph['role']}: {graph['ms']:.3g} ms a run, the most in: {layers}")
    machine, host = document["machine"], document.get("host")
    cores = "1 core" if machine["cores"] == 1 else f"{machine['cores']} cores"
    console.note(f"measured {f'on {host}' if host else 'here'}: {machine['cpu']}, {cores}, {machine['architecture']}")
    if document["energy_absent"]:
        console.note(f"energy: absent: {document['energy_absent']}")


def print_changes(console: Console, changes: Sequence[Change]) -> None:
    """What `--against` found."""
    if not changes:
        return
    rows: list[Sequence[object]] = [_CHANGES]
    for change in changes:
        shift = change.shift
        interval = f"{100 * shift.low:+.1f} to {100 * shift.high:+.1f} %"
        which = (change.name, change.provider, change.threads, change.stage)
        judged = (f"{100 * shift.share:+.1f} %", interval, f"{100 * shift.detectable:.1f} %", change.verdict)
        rows.append((*which, change.before_ms, change.after_ms, *judged))
    _show(console, rows)


def _stages(profile: Mapping[str, Any]) -> list[Sequence[object]]:
    rows: list[Sequence[object]] = []
    for stage, timing in profile["stages"].items():
        floor, middle = profile["floors"].get(stage), timing["p50"]
        limit = ("-", "-", "-") if floor is None else (floor["ms"], round(floor["times"], 2), floor["bound"])
        known = middle["low_ms"] is not None and middle["high_ms"] is not None
        interval = f"{middle['low_ms']:.3g} to {middle['high_ms']:.3g}" if known else "-"
        times = (middle["ms"], interval, timing["p90"]["ms"], timing["p99"]["ms"])
        rows.append((profile["bundle"], profile["provider"], _count(profile), stage, *times, *limit))
    return rows


def _summary(profile: Mapping[str, Any]) -> Sequence[object]:
    sizes = (profile["peak_bytes"], profile["steady_bytes"])
    return (
        profile["bundle"],
        profile["provider"],
        _count(profile),
        profile["passes"],
        profile["load_cold_ms"],
        profile["load_warm_ms"],
        profile["tokens_per_second"] or "-",
        profile["cpu_ms"],
        "-" if profile["energy_j"] is None else profile["energy_j"],
        *("-" if size is None else size / 1e6 for size in sizes),
        profile["bundle_bytes"] / 1e6,
    )


def _count(profile: Mapping[str, Any]) -> str:
    return str(profile["threads"]) if profile["batch"] == 1 else f"{profile['threads']}, batch {profile['batch']}"


def _show(console: Console, rows: Sequence[Sequence[object]]) -> None:
    """A ruled table where a person reads, which folds to the terminal's width; else aligned lines."""
    if not console.is_terminal:
        console.table(rows)
        return
    from rich.console import Console as RichConsole
    from rich.table import Table
    from rich.text import Text

    table = Table(header_style="bold", row_styles=None)
    for number, name in enumerate(rows[0]):
        numeric = any(isinstance(row[number], int | float) for row in rows[1:])
        table.add_column(Text(str(name)), justify="right" if numeric else "left", overflow="fold")
    for row, after in zip(rows[1:], [*rows[2:], None], strict=True):
        # A rule after each combination.
        table.add_row(*(Text(cell(value)) for value in row), end_section=after is not None and row[:3] != after[:3])
    RichConsole().print(table)
