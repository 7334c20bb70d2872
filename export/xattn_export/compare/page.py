"""A comparison as one HTML page without a network: the images, both answers, and the error from layer to layer."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping
from html import escape
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from xattn_export.compare.report import ChangedAnswer, CompareReport, Component
from xattn_runtime.files import MARK

if TYPE_CHECKING:
    from xattn_runtime.preprocess.image import ImageInput

__all__ = ["page", "thumbnail"]

_SIDE_PX = 160
_PLOT = (640, 140)
_LEAST = 1e-8
_STYLE = """
:root { color-scheme: light dark; --line: #8886; --first: #2a6fdb; }
body { font: 15px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; }
table { border-collapse: collapse; width: 100%; }
th, td { text-align: left; padding: .3rem .6rem; vertical-align: top; }
tr { border-bottom: 1px solid var(--line); }
img { image-rendering: auto; max-width: 160px; } svg { width: 100%; height: auto; }
del { text-decoration: none; opacity: .7; }
"""


def thumbnail(image: ImageInput) -> str:
    """The image as a PNG of at most 160 px a side, as a data URL; empty where it is none that can be shown."""
    from xattn_runtime.preprocess.image import open_image

    try:
        opened = Image.fromarray(image) if isinstance(image, np.ndarray) else open_image(image)
    except Exception:  # regions in an .npz, or a file that has gone
        return ""
    opened = opened.convert("RGB")
    opened.thumbnail((_SIDE_PX, _SIDE_PX))
    stream = io.BytesIO()
    opened.save(stream, "PNG")
    return f"data:image/png;base64,{base64.b64encode(stream.getvalue()).decode()}"


def page(report: CompareReport, images: Mapping[int, str]) -> str:
    """The whole page. `images`: number of an example → its `thumbnail`."""
    right = "" if report.right is None else f"; right: {report.right[0]} and {report.right[1]}"
    changes = "\n".join(_change(change, images.get(change.number, "")) for change in report.changes)
    components = "\n".join(_component(component, report.threshold) for component in report.components.values())
    title = "Two bundles compared"
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="generator" content="{MARK}"><title>{title}</title>
<meta name="viewport" content="width=device-width"><style>{_STYLE}</style></head><body>
<h1>{title}</h1>
<p><b>1</b> {escape(report.first)}<br><b>2</b> {escape(report.second)}</p>
<p>{report.examples} examples of {escape(report.data)}: {report.agreement:.1%} answered alike{right}.</p>
<h2>Components</h2>
<p>Both graphs of a role were given the same inputs. A bar is a tensor that both name alike, in the order of the first
graph; its height is the relative error, on a logarithmic scale from {_LEAST:.0e} to 1.</p>
{components}
<h2>Examples that changed</h2>
<table><tr><th>image</th><th>asked</th><th>1</th><th>2</th><th>first difference</th><th>right</th></tr>
{changes or '<tr><td colspan="6">none</td></tr>'}
</table></body></html>
"""


def _component(component: Component, threshold: float) -> str:
    if component.note is not None:
        return f"<h3>{escape(component.role)}</h3><p>{escape(component.note)}</p>"
    worst = "" if component.relative_rms is None else f"error of the outputs {component.relative_rms:.2e}"
    parts = component.parts_at
    where = (
        f"no layer differs by more than {threshold:g}"
        if parts is None
        else f"they part at {parts.operator} <code>{escape(parts.tensor)}</code> ({parts.relative_rms:.2e})"
    )
    return f"<h3>{escape(component.role)}</h3><p>{worst}; {where}.</p>{_plot(component, threshold)}"


def _plot(component: Component, threshold: float) -> str:
    width, height = _PLOT
    step = width / max(len(component.layers), 1)

    def top(error: float) -> float:
        share = 1 - np.log10(max(error, _LEAST)) / np.log10(_LEAST)
        return height * (1 - float(np.clip(share, 0, 1)))

    bars = "".join(
        f'<rect x="{number * step:.1f}" y="{top(layer.relative_rms):.1f}" width="{max(step - 0.5, 0.5):.1f}" '
        f'height="{height - top(layer.relative_rms):.1f}" fill="var(--first)">'
        f"<title>{escape(layer.operator)} {escape(layer.tensor)}: {layer.relative_rms:.2e}</title></rect>"
        for number, layer in enumerate(component.layers)
    )
    line = f'<line x1="0" x2="{width}" y1="{top(threshold):.1f}" y2="{top(threshold):.1f}" stroke="currentColor"/>'
    return f'<svg viewBox="0 0 {width} {height}" role="img" aria-label="error by layer">{bars}{line}</svg>'


def _change(change: ChangedAnswer, source: str) -> str:
    image = f'<img src="{source}" alt="">' if source else escape(change.image)
    token = change.token
    step = "" if token is None else f"step {token.step}: {escape(str(token.first))} / {escape(str(token.second))}"
    cells = (image, *(escape(text or "") for text in (change.text, change.first, change.second)), step)
    return f"<tr>{''.join(f'<td>{cell}</td>' for cell in cells)}<td>{escape(change.reference or '')}</td></tr>"
