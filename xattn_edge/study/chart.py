"""Accuracy against latency as a chart in SVG."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

from xattn_runtime.files import MARK

__all__ = ["Point", "scatter"]

_WIDTH, _HEIGHT, _LEFT, _TOP, _PLOT_WIDTH, _PLOT_HEIGHT = 860, 480, 64, 48, 540, 370
_COLOURS = (
    *("#1b6ca8", "#d1495b", "#2a9d5c", "#b07d12", "#7b4fa3"),
    *("#00838f", "#8d5a3b", "#c2569b", "#5b6b1f", "#444444"),
)
_TICKS = 5


@dataclass(frozen=True)
class Point:
    """One combination: int8 milliseconds of a call, accuracy in percent and its standard deviation."""

    mechanism: str
    fusion: str
    milliseconds: float
    accuracy: float
    deviation: float


def scatter(title: str, points: Sequence[Point], floor: float) -> str:
    """The chart: a dot for each combination in the colour of its mechanism, bars of one standard deviation.

    floor: accuracy without looking, a dashed line.
    """
    across = _Axis([0.0, *(point.milliseconds for point in points)], _LEFT, _PLOT_WIDTH)
    values = [floor, *(point.accuracy + sign * point.deviation for point in points for sign in (-1, 1))]
    up = _Axis(values, _TOP + _PLOT_HEIGHT, -_PLOT_HEIGHT)
    mechanisms = list(dict.fromkeys(point.mechanism for point in points))
    colours = {name: _COLOURS[number % len(_COLOURS)] for number, name in enumerate(mechanisms)}
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {_HEIGHT}" '
        'font-family="sans-serif" font-size="12" fill="#222">',
        f"<!-- {MARK} -->",
        f'<rect width="{_WIDTH}" height="{_HEIGHT}" fill="white"/>',
        f'<text x="{_LEFT}" y="26" font-size="16">{escape(title)}</text>',
        *_axes(across, up),
        f'<line x1="{_LEFT}" x2="{_LEFT + _PLOT_WIDTH}" y1="{up(floor):.1f}" y2="{up(floor):.1f}" '
        'stroke="#888" stroke-dasharray="5 4"/>',
        f'<text x="{_LEFT + 4}" y="{up(floor) - 4:.1f}" fill="#666">without looking</text>',
        *(_dot(point, across, up, colours[point.mechanism]) for point in points),
    ]
    for number, name in enumerate(mechanisms):
        y = _TOP + 12 + 20 * number
        x = _LEFT + _PLOT_WIDTH + 24
        parts.append(f'<circle cx="{x}" cy="{y - 4}" r="5" fill="{colours[name]}"/>')
        parts.append(f'<text x="{x + 12}" y="{y}">{escape(name)}</text>')
    return "\n".join([*parts, "</svg>"]) + "\n"


class _Axis:
    """From values to places along a line that begins at `start` and is `length` long."""

    def __init__(self, values: Sequence[float], start: float, length: float) -> None:
        self.lowest, self.highest = min(values), max(max(values), min(values) + 1e-6)
        self._start, self._length = start, length

    def __call__(self, value: float) -> float:
        return self._start + self._length * (value - self.lowest) / (self.highest - self.lowest)

    @property
    def ticks(self) -> list[float]:
        return [self.lowest + (self.highest - self.lowest) * number / _TICKS for number in range(_TICKS + 1)]


def _axes(across: _Axis, up: _Axis) -> list[str]:
    bottom, right = _TOP + _PLOT_HEIGHT, _LEFT + _PLOT_WIDTH
    parts = [f'<path d="M{_LEFT} {_TOP}V{bottom}H{right}" fill="none" stroke="#222"/>']
    for value in across.ticks:
        parts.append(f'<text x="{across(value):.1f}" y="{bottom + 18}" text-anchor="middle">{value:.2f}</text>')
    for value in up.ticks:
        parts.append(f'<text x="{_LEFT - 8}" y="{up(value) + 4:.1f}" text-anchor="end">{value:.1f}</text>')
    middle = _LEFT + _PLOT_WIDTH / 2
    parts.append(f'<text x="{middle}" y="{bottom + 40}" text-anchor="middle">int8, ms a call</text>')
    parts.append(
        f'<text transform="translate(18 {_TOP + _PLOT_HEIGHT / 2}) rotate(-90)" text-anchor="middle">accuracy, %</text>'
    )
    return parts


def _dot(point: Point, across: _Axis, up: _Axis, colour: str) -> str:
    x, y = across(point.milliseconds), up(point.accuracy)
    low, high = up(point.accuracy - point.deviation), up(point.accuracy + point.deviation)
    label = f"{point.mechanism}, {point.fusion}: {point.accuracy:.1f} %, {point.milliseconds:.2f} ms"
    return (
        f'<g stroke="{colour}"><line x1="{x:.1f}" x2="{x:.1f}" y1="{low:.1f}" y2="{high:.1f}"/>'
        f'<circle cx="{x:.1f}" cy="{y:.1f}" r="4.5" fill="{colour}" fill-opacity="0.75">'
        f"<title>{escape(label)}</title></circle></g>"
    )
