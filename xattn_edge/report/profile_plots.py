"""The plots of a profile's page, as SVG, drawn by matplotlib from a document's JSON values.

What is drawn in the page's own text colour stays readable in light, dark and print.
"""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from xattn_runtime.errors import DependencyError

__all__ = ["draw_plots", "require_plots"]

_Document = Mapping[str, Any]
_Draw = Callable[[Any, _Document], bool]

# A colour that nothing else has, which becomes the page's own.
_INK = "#010203"
_COLOURS = ("#3b7dd8", "#e07b39", "#3a9d6e", "#c94f6d", "#8a6fc0", "#b59a1d", "#4aa3b5")
_MARKERS = "os^Dv"
_PARTS = ("preprocess", "encode", "decode", "answer", "embed_text", "question", "speech", "frames", "classify")
_LAYERS = 15
_WIDTH_IN = 8.0


def draw_plots(document: _Document) -> list[tuple[str, str]]:
    """Titles and SVG elements; those for which the document holds nothing are left out.

    Raises:
        DependencyError: matplotlib is missing.
    """
    plots: tuple[tuple[str, _Draw], ...] = (
        ("Stages of a pass", _stages),
        ("How the totals of the rounds are spread", _spread),
        ("Time against accuracy and size", _frontier),
        ("Roofline", _roofline),
        ("The layers that take longest", _layers),
    )
    drawn = ((title, _svg(draw, document)) for title, draw in plots)
    return [(title, svg) for title, svg in drawn if svg]


def require_plots() -> None:
    """DependencyError where matplotlib is missing."""
    try:
        import matplotlib  # noqa: F401
    except ImportError as error:
        raise DependencyError(
            '--html: expected matplotlib, found none; run pip install "xattn-edge[report]"'
        ) from error


def _svg(draw: _Draw, document: _Document) -> str:
    require_plots()
    import matplotlib
    from cycler import cycler
    from matplotlib.figure import Figure

    inked = ("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color", "legend.labelcolor")
    style: Any = dict.fromkeys(inked, _INK) | {
        "axes.prop_cycle": cycler(color=_COLOURS),
        "axes.spines.right": False,
        "axes.spines.top": False,
        "font.family": "sans-serif",
        "svg.fonttype": "none",
        "svg.hashsalt": "xattn-edge",
    }
    with matplotlib.rc_context(style):
        figure = Figure(figsize=(_WIDTH_IN, 1.2 + 0.5 * max(4, len(document["profiles"]))), layout="constrained")
        figure.patch.set_alpha(0)
        axes = figure.add_subplot()
        axes.patch.set_alpha(0)
        if not draw(axes, document):
            return ""
        file = io.StringIO()
        figure.savefig(file, format="svg", metadata={"Date": None})
    text = file.getvalue()
    element = text[text.index("<svg") :].replace(_INK, "currentColor")
    # The page gives it its size.
    opening, rest = element.split(">", 1)
    return re.sub(r' (?:width|height)="[^"]*"', "", opening) + ">" + rest


def _stages(axes: Any, document: _Document) -> bool:
    profiles = document["profiles"]
    parts = [part for part in _PARTS if any(part in profile["stages"] for profile in profiles)]
    starts = [0.0] * len(profiles)
    for part in parts:
        widths = [profile["stages"].get(part, {"p50": {"ms": 0.0}})["p50"]["ms"] for profile in profiles]
        axes.barh(_labels(profiles), widths, left=starts, label=part)
        starts = [start + width for start, width in zip(starts, widths, strict=True)]
    axes.invert_yaxis()
    axes.set_xlabel("median, ms")
    _legend(axes)
    return bool(parts)


def _spread(axes: Any, document: _Document) -> bool:
    profiles = [profile for profile in document["profiles"] if len(profile["rounds"].get("total", [])) > 1]
    for row, profile in enumerate(profiles):
        totals = profile["rounds"]["total"]
        axes.scatter(totals, [row] * len(totals), s=14, alpha=0.5)
        middle = profile["stages"]["total"]
        axes.plot([middle[name]["ms"] for name in ("p50", "p90", "p99")], [row] * 3, "|", color=_INK, markersize=16)
    axes.set_yticks(range(len(profiles)), _labels(profiles))
    axes.set_ylim(len(profiles) - 0.5, -0.5)
    axes.set_xlabel("total, ms: medians of the rounds; bars at p50, p90 and p99 of all passes")
    return bool(profiles)


def _frontier(axes: Any, document: _Document) -> bool:
    """Time against the score where all were scored alike, else against size; the area of a point is the size."""
    profiles = document["profiles"]
    metrics = [profile.get("metric") for profile in profiles]
    named = {metric["name"] if metric else None for metric in metrics}
    scored = len(named) == 1 and None not in named
    largest = max((profile["bundle_bytes"] for profile in profiles), default=1)
    for profile, metric, label in zip(profiles, metrics, _labels(profiles), strict=True):
        size = profile["bundle_bytes"] / 1e6
        legend = f"{label}: {size:.3g} MB" + ("" if metric is None else f", {metric['name']} {metric['value']:.4g}")
        y = metric["value"] if scored and metric else size
        area = 40 + 260 * profile["bundle_bytes"] / largest
        axes.scatter([profile["stages"]["total"]["p50"]["ms"]], [y], s=area, alpha=0.8, label=legend)
    axes.set_xlim(0, 1.15 * max((profile["stages"]["total"]["p50"]["ms"] for profile in profiles), default=1))
    axes.set_xlabel("total, ms; the area of a point is the size of the bundle")
    axes.set_ylabel(f"{next(iter(named))}" if scored else "bundle, MB")
    if not scored:
        axes.set_ylim(0, 1.15 * largest / 1e6)
    _legend(axes)
    for handle in axes.get_legend().legend_handles:
        handle.set_sizes([40])
    return bool(profiles)


def _roofline(axes: Any, document: _Document) -> bool:
    points = []
    for profile, label in zip(document["profiles"], _labels(document["profiles"]), strict=True):
        for graph in profile["graphs"]:
            count = sum(graph["work"]["operations"].values())
            if graph["work"]["bytes"] and count and graph["ms"]:
                points.append((label, graph["role"], count / graph["work"]["bytes"], count / graph["ms"] / 1e6))
    if not points or not document["limits"]:
        return False
    limit = document["limits"][-1]
    least, most = min(x for _, _, x, _ in points) / 4, max(x for _, _, x, _ in points) * 4
    for name, rate in limit["operations_per_second"].items():
        bend = rate / limit["bytes_per_second"]
        xs = sorted({least, min(max(bend, least), most), most})
        axes.plot(xs, [min(rate, x * limit["bytes_per_second"]) / 1e9 for x in xs], color=_INK, linewidth=1)
        axes.annotate(name, (most, rate / 1e9), color=_INK, ha="right", va="bottom")
    roles = list(dict.fromkeys(role for _, role, _, _ in points))
    combinations = list(dict.fromkeys(label for label, _, _, _ in points))
    for label, role, x, y in points:
        # A colour for each combination, a shape for each graph.
        colour = _COLOURS[combinations.index(label) % len(_COLOURS)]
        marker = _MARKERS[roles.index(role) % len(_MARKERS)]
        axes.scatter([x], [y], label=f"{label}: {role}", marker=marker, color=colour)
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xlabel(f"operations a byte; the lines are the limits of {_threads(limit['threads'])}")
    axes.set_ylabel("10⁹ operations a second")
    _legend(axes)
    return True


def _layers(axes: Any, document: _Document) -> bool:
    shares = [
        (f"{layer or '(no layer)'}, {graph['role']} of {label}", ms)
        for profile, label in zip(document["profiles"], _labels(document["profiles"]), strict=True)
        for graph in profile["graphs"]
        for layer, ms in graph["layers"].items()
    ]
    longest = sorted(shares, key=lambda pair: -pair[1])[:_LAYERS]
    if longest:
        axes.barh([name for name, _ in longest], [ms for _, ms in longest])
        axes.invert_yaxis()
        axes.set_xlabel("ms a run")
    return bool(longest)


def _labels(profiles: Sequence[Mapping[str, Any]]) -> list[str]:
    """What distinguishes the combinations: the file's name, and the rest where several have it."""
    names = [str(profile["bundle"]).replace("\\", "/").rstrip("/").rpartition("/")[2] for profile in profiles]
    labels = []
    for name, profile in zip(names, profiles, strict=True):
        batch = f", batch {profile['batch']}" if profile["batch"] > 1 else ""
        labels.append(f"{name}, {profile['provider']}, {_threads(profile['threads'])}{batch}")
    return labels


def _threads(count: int) -> str:
    return "1 thread" if count == 1 else f"{count} threads"


def _legend(axes: Any) -> None:
    axes.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0), frameon=False, fontsize="small")
