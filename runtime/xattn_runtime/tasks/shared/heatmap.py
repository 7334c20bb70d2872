"""Draws an attention map: a panel a word over the image as PNG, or a page of HTML to step through the words.

It knows weights and images, and no model.
"""

from __future__ import annotations

import base64
import html
import io
import json
import os
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from xattn_runtime.errors import OutputError
from xattn_runtime.json_reader import one_line
from xattn_runtime.tasks.shared.attention_maps import AttentionMap

if TYPE_CHECKING:
    from PIL import Image

__all__ = ["check_heatmap", "draw_html", "draw_png", "write_heatmap"]

_PANEL_PX, _LABEL_PX, _MARGIN_PX = 224, 24, 8
_MOST_IN_A_ROW = 6
_SUFFIXES = (".png", ".html")
# From nothing to the most, as 8-bit RGB: dark violet, red, orange, light yellow.
_COLORS = np.array([[20, 11, 53], [132, 32, 107], [229, 89, 52], [246, 173, 25], [252, 255, 164]], np.float32)
_OPAQUE = 0.65
_LEAST = 1e-30


def check_heatmap(path: Path) -> None:
    """OutputError unless a heat map can be written to `path`: by its suffix, its folder, and what is there already."""
    from xattn_runtime.files import check_replaceable  # not for answers without a heat map

    if path.suffix.lower() not in _SUFFIXES:
        raise OutputError(
            f"{path}: expected a name that ends in {' or '.join(_SUFFIXES)}, found {path.suffix or 'none'}"
        )
    if path.is_dir():
        raise OutputError(f"{path}: expected a file to write, found a folder; name another")
    check_replaceable(path)
    if not path.parent.is_dir():
        raise OutputError(
            f"{path}: expected a folder to write in, found none at {path.parent}; make it or name another"
        )
    if not os.access(path.parent, os.W_OK):
        raise OutputError(f"{path}: expected a folder to write in, found {path.parent} closed to writing; name another")


def write_heatmap(path: Path, attention: AttentionMap, layer: int | None = None, head: int | None = None) -> None:
    """Draw to `path`, PNG or HTML by its suffix; whole or not at all.

    Raises OutputError where it cannot be written, UserError for a layer or head that there is not.
    """
    from xattn_runtime.files import MARK, atomic_write  # not for answers without a heat map

    check_heatmap(path)
    if path.suffix.lower() == ".png":
        from PIL.PngImagePlugin import PngInfo

        stream, made_by = io.BytesIO(), PngInfo()
        made_by.add_text("Software", MARK)
        draw_png(attention, layer, head).save(stream, "PNG", pnginfo=made_by)
        content = stream.getvalue()
    else:
        content = draw_html(attention, layer, head).encode()
    try:
        atomic_write(path, content)
    except OSError as error:
        reason = error.strerror or one_line(error)
        raise OutputError(f"{path}: expected a file that can be written, found: {reason}; name another") from error


def draw_png(attention: AttentionMap, layer: int | None = None, head: int | None = None) -> Image.Image:
    """A panel for each word: the image, and over it where the word's attention lay, as strong as its own most."""
    from PIL import Image, ImageDraw, ImageFont

    base = _enlarged(attention.image)
    maps = attention.mean(layer, head)
    columns = max(1, min(_MOST_IN_A_ROW, len(maps)))
    rows = max(1, -(-len(maps) // columns))
    width, height = base.width + _MARGIN_PX, base.height + _LABEL_PX + _MARGIN_PX
    canvas = Image.new("RGB", (columns * width + _MARGIN_PX, rows * height + _MARGIN_PX), "white")
    draw, font = ImageDraw.Draw(canvas), ImageFont.load_default(_LABEL_PX * 0.7)
    for place, (word, weights) in enumerate(zip(attention.words, maps, strict=True)):
        left, top = _MARGIN_PX + place % columns * width, _MARGIN_PX + place // columns * height
        canvas.paste(_over(base, weights), (left, top))
        draw.text((left, top + base.height + 2), word, fill="black", font=font)
    return canvas


def draw_html(attention: AttentionMap, layer: int | None = None, head: int | None = None) -> str:
    """A page that needs nothing else: arrow keys or clicks step through the words, layers and heads are chosen."""
    stream = io.BytesIO()
    _enlarged(attention.image).save(stream, "PNG")
    most = max(float(attention.weights.max(initial=0.0)), _LEAST)
    data = {
        "words": attention.words,
        "shape": attention.weights.shape,
        "most": most,
        "colors": _COLORS.astype(int).tolist(),
        "opaque": _OPAQUE,
        "layer": layer,
        "head": head,
        # 16 bits are finer than any screen shows.
        "weights": base64.b64encode(np.rint(attention.weights / most * 65535).astype("<u2").tobytes()).decode(),
        "image": "data:image/png;base64," + base64.b64encode(stream.getvalue()).decode(),
    }
    attention.mean(layer, head)  # refuses what there is not
    page = (Path(__file__).parent / "heatmap.html").read_text(encoding="utf-8")
    # Within a script "</" would end it.
    return page.replace("$TITLE", html.escape(attention.text)).replace("$DATA", json.dumps(data).replace("</", "<\\/"))


def _enlarged(pixels: NDArray[np.uint8]) -> Image.Image:
    from PIL import Image

    image = Image.fromarray(pixels)
    factor = _PANEL_PX / max(image.size)
    size = (max(1, round(image.width * factor)), max(1, round(image.height * factor)))
    return image.resize(size, Image.Resampling.BICUBIC)


def _over(base: Image.Image, weights: NDArray[np.float32]) -> Image.Image:
    """The image with the weights `[rows, columns]` over it: the more, the lighter and the more opaque."""
    from PIL import Image

    share = weights / max(float(weights.max()), _LEAST)
    grown = np.asarray(Image.fromarray(share).resize(base.size, Image.Resampling.BICUBIC)).clip(0, 1)
    place = grown * (len(_COLORS) - 1)
    low = np.minimum(place.astype(np.int64), len(_COLORS) - 2)
    part = (place - low)[..., None]
    color = _COLORS[low] * (1 - part) + _COLORS[low + 1] * part
    alpha = _OPAQUE * grown[..., None]
    mixed = np.asarray(base, dtype=np.float32) * (1 - alpha) + color * alpha
    return Image.fromarray(np.rint(mixed).astype(np.uint8))
