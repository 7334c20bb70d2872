"""Drawn faces that change from neutral to an expression: frames of no film, made where frames are wanted."""

from __future__ import annotations

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray
from PIL import Image, ImageDraw

__all__ = ["FRAMES", "SIDE_PX", "face_frames"]

FRAMES = 6
SIDE_PX = 32

_DRAWN_PX = 128


def face_frames(rng: Generator, expression: float) -> NDArray[np.uint8]:
    """`[6, 32, 32, 3]`: a face whose mouth bends up, at `expression` 1, or down, at -1, more in each frame.

    Colours, place, size and the wink of an eye are drawn from `rng`, and tell nothing.
    """
    back, skin = rng.integers(0, 256, 3), rng.integers(90, 256, 3)
    middle = rng.uniform(-8, 8, 2) + _DRAWN_PX / 2
    radius = rng.uniform(40, 52)
    closed = int(rng.integers(0, 2 * FRAMES))
    frames = [
        _face(back, skin, middle, radius, expression * (number + 1) / FRAMES, number == closed)
        for number in range(FRAMES)
    ]
    return np.stack(frames)


def _face(
    back: NDArray[np.int64],
    skin: NDArray[np.int64],
    middle: NDArray[np.float64],
    radius: float,
    bend: float,
    closed: bool,
) -> NDArray[np.uint8]:
    canvas = Image.new("RGB", (_DRAWN_PX, _DRAWN_PX), _colour(back))
    draw = ImageDraw.Draw(canvas)
    x, y = middle
    draw.ellipse((x - radius, y - radius, x + radius, y + radius), fill=_colour(skin), outline=(0, 0, 0), width=3)
    for side in (-1, 1):
        eye, height = x + side * radius * 0.4, radius * (0.03 if closed else 0.12)
        draw.ellipse((eye - 6, y - radius * 0.3 - height, eye + 6, y - radius * 0.3 + height), fill=(0, 0, 0))
    across = np.linspace(-1, 1, 17)
    down = y + radius * (0.4 + 0.25 * bend - 0.45 * bend * across**2)
    points = list(zip((x + radius * 0.55 * across).tolist(), down.tolist(), strict=True))
    draw.line(points, fill=(0, 0, 0), width=6, joint="curve")
    return np.asarray(canvas.resize((SIDE_PX, SIDE_PX), Image.Resampling.BOX))


def _colour(values: NDArray[np.int64]) -> tuple[int, ...]:
    return tuple(int(value) for value in values)
