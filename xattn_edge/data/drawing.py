"""Putting images on backgrounds, and the augmentation of training images. Arrays are uint8."""

from __future__ import annotations

import math

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray
from PIL import Image, ImageChops, ImageFilter, ImageOps

__all__ = ["add_noise", "augment", "background", "place"]

_WHITE = (255, 255, 255)
_LUMA = (0.299, 0.587, 0.114)
_MIDDLE_GREY = 128


def background(rng: Generator, side_px: int) -> Image.Image:
    """A plain, graded, striped or cloudy background, RGB."""
    kind = rng.choice(["white", "plain", "gradient", "stripes", "clouds"], p=[0.15, 0.25, 0.2, 0.15, 0.25])
    if kind == "white":
        return Image.new("RGB", (side_px, side_px), _WHITE)
    first, second = rng.integers(0, 256, (2, 3))
    if kind == "plain":
        return Image.new("RGB", (side_px, side_px), tuple(int(value) for value in first))
    if kind == "clouds":
        coarse = rng.integers(0, 256, (int(rng.integers(3, 9)),) * 2 + (3,))
        blend = (0.5 * coarse + 0.5 * first).astype(np.uint8)
        return Image.fromarray(blend).resize((side_px, side_px), Image.Resampling.BICUBIC)
    angle = rng.uniform(0, 2 * math.pi)
    rows, columns = np.mgrid[0:side_px, 0:side_px] / side_px
    along = rows * math.sin(angle) + columns * math.cos(angle)
    if kind == "stripes":
        share = (np.sin(along * rng.uniform(15, 60)) > 0).astype(np.float64)
        second = first + (second - first) * 0.3
    else:
        share = (along - along.min()) / np.ptp(along)
    return Image.fromarray((first + share[..., None] * (second - first)).astype(np.uint8))


def place(canvas: Image.Image, drawing: Image.Image, centre_px: tuple[float, float], size_px: int) -> None:
    """Lay `drawing` (RGBA) over `canvas` (RGB), scaled to a square of `size_px` around `centre_px` (x, y)."""
    scaled = drawing.resize((size_px, size_px), Image.Resampling.BILINEAR)
    corner = (round(centre_px[0] - size_px / 2), round(centre_px[1] - size_px / 2))
    canvas.paste(scaled, corner, scaled)


def augment(rng: Generator, drawing: Image.Image) -> Image.Image:
    """The same thing drawn a little differently, RGBA: rotated, recoloured, or as a line drawing.

    No mirroring and no strong turning: arrows, clocks and 'facing right' would change their meaning.
    """
    alpha = drawing.getchannel("A")
    colour = drawing.convert("RGB").convert("RGB", _colour_change(rng))
    if rng.random() < 0.2:
        colour, alpha = _line_drawing(rng, colour, alpha)
    changed = Image.merge("RGBA", (*colour.split(), alpha))
    if rng.random() < 0.6:
        changed = _warp(rng, changed)
    return changed


def _colour_change(rng: Generator) -> tuple[float, ...]:
    """Saturation, contrast and brightness changed a little, as the 3 × 4 matrix of an affine map of RGB."""
    saturation, contrast, brightness = rng.uniform(0.6, 1.4), rng.uniform(0.8, 1.2), rng.uniform(0.8, 1.2)
    matrix = np.zeros((3, 4))
    matrix[:, :3] = (1 - saturation) * np.array(_LUMA) + saturation * np.eye(3)
    matrix *= contrast * brightness
    matrix[:, 3] = _MIDDLE_GREY * (1 - contrast) * brightness
    return tuple(matrix.ravel())


def _line_drawing(rng: Generator, colour: Image.Image, alpha: Image.Image) -> tuple[Image.Image, Image.Image]:
    """Flat colours inside black contours, as artists of outlined emoji draw."""
    thickness = int(rng.choice([3, 5]))
    edges = colour.convert("L").filter(ImageFilter.FIND_EDGES).point(lambda value: 255 if value > 48 else 0)
    inside = alpha.filter(ImageFilter.MinFilter(thickness))
    contour = ImageChops.subtract(alpha.filter(ImageFilter.MaxFilter(3)), inside)
    lines = ImageChops.lighter(ImageChops.multiply(edges, inside), contour)
    flat = ImageOps.posterize(colour, int(rng.integers(3, 6)))
    if rng.random() < 0.3:
        flat = Image.blend(flat, Image.new("RGB", flat.size, _WHITE), rng.uniform(0.3, 0.9))
    flat.paste((0, 0, 0), mask=lines)
    return flat, ImageChops.lighter(alpha, contour)


def _warp(rng: Generator, drawing: Image.Image) -> Image.Image:
    """Rotated by at most 12 degrees, stretched and sheared a little."""
    angle = math.radians(rng.uniform(-12, 12))
    scale_x, scale_y = rng.uniform(0.9, 1.2, 2)
    shear = rng.uniform(-0.1, 0.1)
    matrix = np.array([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
    matrix = matrix @ np.array([[scale_x, shear], [0, scale_y]])
    centre = np.array(drawing.size) / 2
    offset = centre - matrix @ centre
    coefficients = (*matrix[0], offset[0], *matrix[1], offset[1])
    return drawing.transform(drawing.size, Image.Transform.AFFINE, coefficients, Image.Resampling.BILINEAR)


def add_noise(rng: Generator, canvas: Image.Image) -> NDArray[np.uint8]:
    """`[side, side, 3]`, sometimes blurred, sometimes with sensor noise."""
    if rng.random() < 0.2:
        canvas = canvas.filter(ImageFilter.GaussianBlur(rng.uniform(0.3, 0.9)))
    pixels = np.asarray(canvas)
    if rng.random() < 0.2:
        noise = rng.normal(0, rng.uniform(2, 10), pixels.shape)
        pixels = np.clip(pixels + noise, 0, 255).astype(np.uint8)
    return pixels
