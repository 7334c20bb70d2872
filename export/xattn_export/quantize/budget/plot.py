"""The mixes that a search measured as a plot: size against loss, those of the frontier joined."""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape

from xattn_export.quantize.budget.search import Measured, named
from xattn_runtime.files import MARK

__all__ = ["frontier_plot"]

_WIDTH, _HEIGHT, _LEFT, _BELOW = 640, 360, 64, 48


def frontier_plot(results: Sequence[Measured], frontier: Sequence[Measured], budget: float, metric: str) -> str:
    """An SVG with a dot for each of `results` that could be made, and a line at the budget."""
    plotted = [one for one in results if one.failure is None and math.isfinite(one.loss)]
    largest = max(one.bytes for one in plotted)
    low, high = min(0.0, *(one.loss for one in plotted)), max(2 * budget, *(one.loss for one in plotted))

    def x(size: float) -> float:
        return _LEFT + size / largest * (_WIDTH - _LEFT - 16)

    def y(loss: float) -> float:
        return 16 + (high - loss) / ((high - low) or 1.0) * (_HEIGHT - _BELOW - 16)

    dots = "".join(_dot(one, x(one.bytes), y(one.loss), is_best=one in frontier) for one in plotted)
    joined = sorted(frontier, key=lambda one: one.bytes)
    line = " ".join(f"{x(one.bytes):.1f},{y(one.loss):.1f}" for one in joined)
    sizes = [largest * share for share in (0, 0.25, 0.5, 0.75, 1)]
    below = "".join(_text(x(size), _HEIGHT - _BELOW + 18, "middle", f"{size / 1e6:.1f}") for size in sizes)
    labels = "".join(_text(_LEFT - 6, y(loss) + 4, "end", f"{loss:.1%}") for loss in (low, budget, high))
    return f"""<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {_HEIGHT}" font-family="sans-serif" \
font-size="12"><!-- {MARK} --><rect width="100%" height="100%" fill="white"/>
<line x1="{_LEFT}" x2="{_WIDTH - 16}" y1="{y(budget):.1f}" y2="{y(budget):.1f}" stroke="#c33" stroke-dasharray="4 3"/>
<text x="{_WIDTH - 16}" y="{y(budget) - 5:.1f}" text-anchor="end" fill="#c33">the budget</text>
<polyline points="{line}" fill="none" stroke="#2a6fdb"/>{dots}{below}{labels}
<text x="{(_WIDTH + _LEFT) / 2}" y="{_HEIGHT - 8}" text-anchor="middle">size, MB</text>
<g transform="rotate(-90 14 {_HEIGHT / 2})">{_text(14, _HEIGHT / 2, "middle", f"loss of {metric}")}</g>
</svg>
"""


def _dot(one: Measured, x: float, y: float, *, is_best: bool) -> str:
    title = f"{named(one.components)}: {one.bytes / 1e6:.2f} MB, {one.loss:.2%} lost, {one.time:.2f} of the time"
    fill = "#2a6fdb" if is_best else "#8888"
    return f'<circle cx="{x:.1f}" cy="{y:.1f}" r="5" fill="{fill}"><title>{escape(title)}</title></circle>'


def _text(x: float, y: float, anchor: str, text: str) -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}</text>'
