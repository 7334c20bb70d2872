"""Sizes of images, in whole pixels: what each sizing step makes of a height and a width.

Pure arithmetic, truncating and rounding where the image processors of Transformers 5 do (Pillow backends; the function
is named at each), so that an image comes out with the same size. It knows neither steps nor images.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

__all__ = [
    "MOST_OBLONG",
    "Size",
    "Window",
    "area_size",
    "centre_window",
    "longest_edge_size",
    "multiple_size",
    "round_up",
    "shortest_edge_size",
    "whole_tiles_size",
]

Size = tuple[int, int]
"""Height and width, pixels."""

MOST_OBLONG = 200
"""How many times the shorter side the longer may be, where `area_size` is to be taken of it."""


@dataclass(frozen=True)
class Window:
    """What a centre crop takes of an image, and where it lies on the black canvas of the size asked for."""

    top: int
    left: int
    height: int
    width: int
    top_on_canvas: int
    left_on_canvas: int


def shortest_edge_size(size: Size, edge_px: int, longest_px: int | None) -> Size:
    """The shorter side to `edge_px`, the longer in proportion, truncated; less where it would pass `longest_px`.

    `get_resize_output_image_size` and, with a longest side, `get_size_with_aspect_ratio` in image_transforms.py. No
    side falls below 1.
    """
    height, width = size
    shorter, longer = min(size), max(size)
    exact = float(edge_px)
    if longest_px is not None and longer / shorter * edge_px > longest_px:
        exact = longest_px * shorter / longer
    edge = round(exact)
    if edge == shorter:
        return size
    other = max(1, int(exact * longer / shorter))
    return (other, max(1, edge)) if width < height else (max(1, edge), other)


def multiple_size(size: Size, shortest_px: int, longest_px: int, multiple_px: int) -> Size:
    """The shorter side to `shortest_px`, all shrunk to hold the longer at `longest_px`, then down to multiples.

    `get_resize_output_image_size` in image_processing_pil_vilt.py. No side falls below one multiple.
    """
    height, width = size
    scale = shortest_px / min(size)
    exact = (float(shortest_px), scale * width) if height < width else (scale * height, float(shortest_px))
    if max(exact) > longest_px:
        scale = longest_px / max(exact)
        exact = (scale * exact[0], scale * exact[1])
    down = [int(side + 0.5) // multiple_px * multiple_px for side in exact]
    return max(down[0], multiple_px), max(down[1], multiple_px)


def longest_edge_size(size: Size, edge_px: int, multiple_px: int) -> Size:
    """The longer side to `edge_px`, the shorter in proportion, truncated, then up to a multiple; at least 1.

    `_resize_output_size_rescale_to_max_len` in image_processing_pil_idefics3.py, where the multiple is 2.
    """
    height, width = size
    aspect = width / height
    if width >= height:
        return max(1, round_up(int(edge_px / aspect), multiple_px)), edge_px
    return edge_px, max(1, round_up(int(edge_px * aspect), multiple_px))


def whole_tiles_size(size: Size, side_px: int) -> Size:
    """Both sides up to multiples of `side_px`: the longer first, the shorter in proportion to what it became.

    `resize_for_vision_encoder` in image_processing_pil_idefics3.py.
    """
    height, width = size
    aspect = width / height
    if width >= height:
        width = round_up(width, side_px)
        height = round_up(int(width / aspect), side_px)
    else:
        height = round_up(height, side_px)
        width = round_up(int(height * aspect), side_px)
    return max(height, side_px), max(width, side_px)


def area_size(size: Size, fewest_px: int, most_px: int, multiple_px: int) -> Size:
    """Both sides to the nearest multiples; or in proportion, to as many pixels in all as `fewest_px` and `most_px` say.

    `smart_resize` in image_processing_pil_qwen2_vl.py, with its float64 and its rounding of halves to even.
    """
    height, width = size
    near = [round(side / multiple_px) * multiple_px for side in size]
    if near[0] * near[1] > most_px:
        shrink = math.sqrt((height * width) / most_px)
        down = [max(multiple_px, math.floor(side / shrink / multiple_px) * multiple_px) for side in size]
        return down[0], down[1]
    if near[0] * near[1] < fewest_px:
        grow = math.sqrt(fewest_px / (height * width))
        up = [math.ceil(side * grow / multiple_px) * multiple_px for side in size]
        return up[0], up[1]
    return near[0], near[1]


def centre_window(size: Size, crop: Size) -> Window:
    """The middle of an image of `size` for a canvas of `crop`; `center_crop` in image_transforms.py."""
    (top, height, above), (left, width, left_offset) = map(_centre, size, crop)
    return Window(top, left, height, width, above, left_offset)


def round_up(value: int, multiple: int) -> int:
    """The smallest multiple that is at least `value`."""
    return math.ceil(value / multiple) * multiple


def _centre(side: int, crop: int) -> tuple[int, int, int]:
    """Along one side: where the image's part begins, how long it is, where it begins on the canvas."""
    if crop <= side:
        return (side - crop) // 2, crop, 0
    return 0, side, (crop - side + 1) // 2
