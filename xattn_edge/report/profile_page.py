"""A profile as one page that needs no network: its tables and plots, for light, dark and paper."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from xattn_edge.report.profile_plots import draw_plots

__all__ = ["profile_page"]

_STYLE = """
:root { color-scheme: light dark; --line: #8884; }
body { font: 15px/1.5 system-ui, sans-serif; max-width: 62rem; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.5rem; } h2 { font-size: 1.1rem; margin-top: 2.5rem; break-after: avoid; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: 12.5px; }
table { display: block; overflow-x: auto; }
th, td { padding: .25rem .5rem; border-bottom: 1px solid var(--line); text-align: right; white-space: nowrap; }
th:first-child, td:first-child { text-align: left; }
tbody tr:nth-child(even) { background: #8881; }
figure { margin: 1rem 0; break-inside: avoid; } svg { width: 100%; height: auto; }
.worse { color: #c0392b; } .better { color: #2e8b57; }
@media print { body { max-width: none; margin: 0; } :root { color-scheme: light; } }
"""


def profile_page(document: Mapping[str, Any]) -> str:
    """HTML of what `ProfileDocument.to_dict` gave.

    Raises:
        DependencyError: matplotlib is missing.
    """
    machine, host = document["machine"], document.get("host")
    where = f"{escape(host)}: " if host else ""
    plots = "".join(
        f"<h2>{escape(title)}</h2><figure>{svg}</figure>"
        for title, svg in (draw_plots(document) if document["profiles"] else [])
    )
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>xattn-edge profile</title><style>{_STYLE}</style></head><body>
<h1>Profile</h1>
<p>{where}{escape(machine["cpu"])}, {machine["cores"]} cores,
{escape(machine["system"])} {escape(machine["architecture"])};
{escape(document["created"])}, xattn-edge {escape(document["version"])}. {_limits(document["limits"])}</p>
{_failures(document["failures"])}
<h2>Stages</h2>{_stages(document["profiles"])}
<h2>Bundles</h2>{_bundles(document["profiles"])}
{_changes(document.get("against", []))}{plots}
</body></html>
"""


def _limits(limits: Sequence[Mapping[str, Any]]) -> str:
    sentences = []
    for one in limits:
        rates = [f"{rate / 1e9:.0f} · 10⁹ {name} operations" for name, rate in one["operations_per_second"].items()]
        who = "One thread" if one["threads"] == 1 else f"{one['threads']} threads"
        sentences.append(f"{who}: {one['bytes_per_second'] / 1e9:.1f} GB read, {', '.join(rates)} a second at best.")
    return " ".join(sentences)


def _stages(profiles: Sequence[Mapping[str, Any]]) -> str:
    rows = []
    for profile in profiles:
        for stage, timing in profile["stages"].items():
            floor = profile["floors"].get(stage)
            limit = ["", "", ""] if floor is None else [f"{floor['ms']:.3g}", f"{floor['times']:.2f}", floor["bound"]]
            middle = timing["p50"]
            known = middle["low_ms"] is not None and middle["high_ms"] is not None
            interval = f"{middle['low_ms']:.3g} to {middle['high_ms']:.3g}" if known else ""
            times = [f"{middle['ms']:.3g}", interval, *(f"{timing[name]['ms']:.3g}" for name in ("p90", "p99"))]
            rows.append([profile["bundle"], profile["provider"], _count(profile), stage, *times, *limit])
    header = ["bundle", "provider", "threads", "stage", "p50, ms", "95 %", "p90", "p99", "floor, ms", "×", "bound by"]
    return _table(header, rows)


def _bundles(profiles: Sequence[Mapping[str, Any]]) -> str:
    header = [
        "bundle",
        "provider",
        "threads",
        "passes",
        "load cold, ms",
        "warm",
        "tokens/s",
        "CPU, ms",
        "J",
        "peak, MB",
        "bundle, MB",
    ]
    rows = [
        [
            profile["bundle"],
            profile["provider"],
            _count(profile),
            str(profile["passes"]),
            f"{profile['load_cold_ms']:.0f}",
            f"{profile['load_warm_ms']:.0f}",
            *(_shown(profile[name]) for name in ("tokens_per_second", "cpu_ms", "energy_j")),
            _shown(profile["peak_bytes"] and profile["peak_bytes"] / 1e6),
            f"{profile['bundle_bytes'] / 1e6:.1f}",
        ]
        for profile in profiles
    ]
    return _table(header, rows)


def _changes(changes: Sequence[Mapping[str, Any]]) -> str:
    if not changes:
        return ""
    rows = []
    for change in changes:
        shift = change["shift"]
        shares = [f"{100 * shift[name]:+.1f} %" for name in ("share", "low", "high", "detectable")]
        rows.append(
            [change["name"], change["provider"], str(change["threads"]), change["stage"], *shares, change["verdict"]]
        )
    header = ["model", "provider", "threads", "stage", "change", "from", "to", "seen from", "verdict"]
    return f"<h2>Against the earlier profile</h2>{_table(header, rows)}"


def _failures(failures: Sequence[Mapping[str, Any]]) -> str:
    return "".join(f"<p class='worse'>Not measured: {escape(failure['message'])}</p>" for failure in failures)


def _count(profile: Mapping[str, Any]) -> str:
    return str(profile["threads"]) if profile["batch"] == 1 else f"{profile['threads']}, batch {profile['batch']}"


def _shown(value: float | None) -> str:
    return "" if value is None else f"{value:.4g}"


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    head = "".join(f"<th>{escape(cell)}</th>" for cell in header)
    body = "".join(
        f"<tr class='{escape(row[-1])}'>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>"
        for row in rows
    )
    return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"
