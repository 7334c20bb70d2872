"""Simple images for golden cases, drawn the same everywhere: export needs no data set."""

from __future__ import annotations

import io
import math

from PIL import Image, ImageDraw

from xattn_export.families.base import GoldenInput
from xattn_runtime.bundle.manifest import TaskName
from xattn_runtime.bundle.task_table import TASKS

__all__ = ["caption_images", "captioned_images", "few_images", "question_images", "row_images", "shape_images"]

Color = tuple[int, int, int]
Point = tuple[float, float]
_LIGHT = (236, 233, 228)
_SHAPES: tuple[tuple[str, Color], ...] = (
    ("circle", (214, 32, 32)),
    ("rectangle", (30, 60, 210)),
    ("triangle", (20, 140, 40)),
    ("circle", (240, 220, 20)),
    ("rectangle", (0, 128, 128)),
    ("triangle", (12, 12, 12)),
    ("rectangle", (128, 128, 128)),
    ("circle", (139, 84, 30)),
)
_CAPTIONS = ("a red circle", "a blue rectangle", "a green triangle", "a yellow circle")
_SHAPE_SIDE_PX = 64
_CAPTION_SIDE_PX = 160
_FEW = 3
_QUESTIONS = (
    "what color is the shape?",
    "what shape is in the image?",
    "is there a red circle?",
    "does the image contain a triangle?",
)


def shape_images() -> tuple[GoldenInput, ...]:
    """One coloured shape on a light background in each, with two questions."""
    return tuple(
        GoldenInput(_png(_one_shape(shape, color, offset)), (_QUESTIONS[offset % 4], _QUESTIONS[(offset + 1) % 4]))
        for offset, (shape, color) in enumerate(_SHAPES)
    )


def question_images() -> tuple[GoldenInput, ...]:
    """The first four of `shape_images` with a question each: for models that take long to answer one."""
    return tuple(GoldenInput(image.content, image.texts[:1]) for image in shape_images()[: len(_CAPTIONS)])


def captioned_images() -> tuple[GoldenInput, ...]:
    """The same four with what they show."""
    return tuple(
        GoldenInput(image.content, (caption,)) for image, caption in zip(question_images(), _CAPTIONS, strict=True)
    )


def row_images(task: TaskName) -> tuple[GoldenInput, ...]:
    """Four shapes beside each other, and three below each other, with a question each where `task` is to answer one.

    For models that cut images into tiles: of long and narrow ones they make few.
    """
    drawings = []
    for number, (columns, rows) in enumerate(((4, 1), (1, 3))):
        image = Image.new("RGB", (columns * _SHAPE_SIDE_PX, rows * _SHAPE_SIDE_PX), _LIGHT)
        for place in range(columns * rows):
            corner = (place % columns * _SHAPE_SIDE_PX, place // columns * _SHAPE_SIDE_PX)
            image.paste(_one_shape(*_SHAPES[place + number], offset=place), corner)
        drawings.append(GoldenInput(_png(image), (_QUESTIONS[number],) if TASKS[task].text_key is not None else ()))
    return tuple(drawings)


def caption_images() -> tuple[GoldenInput, ...]:
    """Hearts, circles, stars and squares, alone and in pairs, on plain and graded backgrounds."""
    side = _CAPTION_SIDE_PX
    middle = (0.5 * side, 0.5 * side)
    left, right = (0.28 * side, 0.5 * side), (0.72 * side, 0.5 * side)
    drawings = []
    for background, figures in (
        ((255, 255, 255), (("heart", middle, 0.36, (220, 30, 60)),)),
        ((255, 255, 255), (("circle", middle, 0.36, (250, 200, 40)),)),
        (None, (("square", middle, 0.3, (40, 90, 200)),)),
        (None, (("star", middle, 0.38, (245, 190, 30)),)),
        ((230, 240, 250), (("heart", left, 0.2, (150, 70, 190)), ("circle", right, 0.2, (40, 160, 80)))),
        (None, (("star", left, 0.2, (255, 220, 60)), ("square", right, 0.17, (20, 20, 20)))),
    ):
        image = _graded(side) if background is None else Image.new("RGB", (side, side), background)
        draw = ImageDraw.Draw(image)
        for shape, centre, size, color in figures:
            _draw(draw, shape, centre, size * side, color)
        drawings.append(GoldenInput(_png(image)))
    return tuple(drawings)


def few_images(task: TaskName) -> tuple[GoldenInput, ...]:
    """Three images to caption, or with a question each: for models that take long to generate a text."""
    return (caption_images() if TASKS[task].text_key is None else question_images())[:_FEW]


def _one_shape(shape: str, color: Color, offset: int) -> Image.Image:
    image = Image.new("RGB", (_SHAPE_SIDE_PX, _SHAPE_SIDE_PX), _LIGHT)
    centre = (26.0 + 3 * (offset % 4), 38.0 - 3 * (offset % 5))
    _draw(ImageDraw.Draw(image), shape, centre, 13.0 + offset % 3, color)
    return image


def _draw(draw: ImageDraw.ImageDraw, shape: str, centre: Point, radius: float, color: Color) -> None:
    """`shape` around `centre`, reaching `radius` pixels to each side."""
    x, y = centre
    if shape == "circle":
        draw.ellipse((x - radius, y - radius, x + radius, y + radius), fill=color)
    elif shape in ("square", "rectangle"):
        height = radius if shape == "square" else 0.6 * radius
        draw.rectangle((x - radius, y - height, x + radius, y + height), fill=color)
    else:
        draw.polygon([(x + radius * dx, y + radius * dy) for dx, dy in _outline(shape)], fill=color)


def _outline(shape: str) -> list[Point]:
    """The corners of a shape that reaches about 1 to each side of the origin."""
    if shape == "triangle":
        return [(0.0, -1.0), (0.9, 0.8), (-0.9, 0.8)]
    if shape == "star":
        turns = [(math.pi * i / 5, 1.0 if i % 2 == 0 else 0.42) for i in range(10)]
        return [(reach * math.sin(turn), -reach * math.cos(turn)) for turn, reach in turns]
    angles = [2 * math.pi * i / 60 for i in range(60)]
    return [
        (math.sin(t) ** 3, -(13 * math.cos(t) - 5 * math.cos(2 * t) - 2 * math.cos(3 * t) - math.cos(4 * t)) / 17)
        for t in angles
    ]


def _graded(side: int) -> Image.Image:
    """A background with a gradient from light blue to light green."""
    gradient = Image.linear_gradient("L").resize((side, side))
    return Image.composite(
        Image.new("RGB", gradient.size, (215, 235, 215)), Image.new("RGB", gradient.size, (205, 220, 250)), gradient
    )


def _png(image: Image.Image) -> bytes:
    stream = io.BytesIO()
    image.save(stream, "PNG")
    return stream.getvalue()
