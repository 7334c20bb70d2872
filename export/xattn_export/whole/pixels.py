"""Preprocessing as nodes: uint8 images of any size to the values that the image encoder takes.

A resize runs as Pillow's does (13.0): along the width, rounded to 8 bits, then along the height, rounded again, or the
height first where it shrinks by more than twice as many pixels; a weight that falls outside of the image goes to the
others (`exclude_outside`). https://onnx.ai/onnx/operators/onnx__Resize.html
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from onnx import TensorProto

from xattn_export.graph.editing import GraphWriter
from xattn_runtime.preprocess.steps import (
    CenterCrop,
    Flatten,
    Normalize,
    PadToSquare,
    Rescale,
    Resize,
    ResizeShortestEdge,
    Step,
)

__all__ = ["unwritable_step", "write_pixels"]

_MODES = {"bilinear": "linear", "bicubic": "cubic"}
_HEIGHT, _WIDTH = 2, 3


@dataclass(frozen=True)
class _Image:
    """float32 `[batch, 3, height, width]` of whole numbers from 0 to 255, and its sides, int64 `[1]` each."""

    tensor: str
    height: str
    width: str


def unwritable_step(steps: Sequence[Step]) -> str | None:
    """Why one of `steps` has no form here; None where all have one."""
    for step in steps:
        match step:
            case Resize() | ResizeShortestEdge() if step.filter not in _MODES:
                return f"preprocessing resizes with the filter {step.filter}, which the operator Resize does not have"
            case ResizeShortestEdge() if step.longest_px is not None:
                return "preprocessing resizes with a longest side"
            case PadToSquare() if len(set(step.background)) > 1:
                return "preprocessing pads with a colour that is no grey"
            case Flatten() | PadToSquare() | Resize() | ResizeShortestEdge() | CenterCrop() | Rescale() | Normalize():
                continue
            case _:
                return f"preprocessing has the step {step.op}"
    return None


def write_pixels(writer: GraphWriter, images: str, steps: Sequence[Step]) -> str:
    """Pixel values, float32 `[batch, 3, height, width]`, of `images`, uint8 `[batch, height, width, 3]`.

    `steps` are those of a manifest, without any that `unwritable_step` names.
    """
    # Bytes until the first step that computes: a large image is then a quarter as large.
    padded = images
    waiting = [step for step in steps if not isinstance(step, Flatten)]
    while waiting and isinstance(waiting[0], PadToSquare):
        padded = _padded_to_square(writer, padded, waiting.pop(0))
    planes = writer.op("Cast", writer.op("Transpose", padded, perm=[0, 3, 1, 2]), to=TensorProto.FLOAT)
    image = _Image(planes, *(writer.op("Shape", planes, start=axis, end=axis + 1) for axis in (_HEIGHT, _WIDTH)))
    for step in waiting:
        image = _after(writer, image, step)
    # Changes nothing, and stands in the way: ONNX Runtime 1.32 lays out calibrated convolutions anew, moves the
    # transposition that this takes up to the pixels, and over a Resize of one axis it moves it wrongly.
    return writer.op("Reshape", image.tensor, writer.constants.integers([0, 0, 0, 0]))


def _after(writer: GraphWriter, image: _Image, step: Step) -> _Image:
    integers = writer.constants.integers
    match step:
        case Resize():
            return _resized(writer, image, integers([step.height_px]), integers([step.width_px]), step.filter)
        case ResizeShortestEdge():
            return _resized(writer, image, *_shortest_edge(writer, image, step.edge_px), step.filter)
        case CenterCrop():
            return _cropped(writer, image, step)
        case PadToSquare():
            return _padded_later(writer, image, step)
        case Rescale():
            factor = writer.constants.number(step.factor, TensorProto.FLOAT)
            return _Image(writer.op("Mul", image.tensor, factor), image.height, image.width)
        case Normalize():
            mean, std = (
                writer.constants.tensor(np.array(values, np.float32).reshape(3, 1, 1))
                for values in (step.mean, step.std)
            )
            centred = writer.op("Sub", image.tensor, mean)
            return _Image(writer.op("Div", centred, std), image.height, image.width)
    raise TypeError(f"no nodes for the step {step.op}")


def _padded_to_square(writer: GraphWriter, images: str, step: Step) -> str:
    """uint8 `[batch, side, side, 3]` of uint8 `[batch, height, width, 3]`."""
    height, width = (writer.op("Shape", images, start=axis, end=axis + 1) for axis in (1, 2))
    background = writer.constants.tensor(np.array(_grey(step), np.uint8))
    return _padded(writer, images, (height, width), (1, 2), background)


def _padded_later(writer: GraphWriter, image: _Image, step: PadToSquare) -> _Image:
    """The same of an image that was resized before."""
    background = writer.constants.number(_grey(step), TensorProto.FLOAT)
    padded = _padded(writer, image.tensor, (image.height, image.width), (_HEIGHT, _WIDTH), background)
    side = writer.op("Max", image.height, image.width)
    return _Image(padded, side, side)


def _padded(writer: GraphWriter, tensor: str, sides: tuple[str, str], axes: tuple[int, int], background: str) -> str:
    """To a square, in the middle; an odd pixel of margin goes below and to the right."""
    two = writer.constants.integers([2])
    margins = [writer.op("Sub", writer.op("Max", *sides), side) for side in sides]
    before = [writer.op("Div", margin, two) for margin in margins]
    after = [writer.op("Sub", *pair) for pair in zip(margins, before, strict=True)]
    pads = writer.op("Concat", *before, *after, axis=0)
    return writer.op("Pad", tensor, pads, background, writer.constants.integers(axes))


def _grey(step: Step) -> int:
    return step.background[0] if isinstance(step, PadToSquare) else 0


def _shortest_edge(writer: GraphWriter, image: _Image, edge_px: int) -> tuple[str, str]:
    """Height and width of which the shorter is `edge_px`; see `geometry.shortest_edge_size`."""
    edge, one = (writer.constants.integers([value]) for value in (edge_px, 1))
    shorter, longer = (writer.op(extreme, image.height, image.width) for extreme in ("Min", "Max"))
    other = writer.op("Max", writer.op("Div", writer.op("Mul", edge, longer), shorter), one)
    is_upright = writer.op("Less", image.width, image.height)
    return writer.op("Where", is_upright, other, edge), writer.op("Where", is_upright, edge, other)


def _resized(writer: GraphWriter, image: _Image, height: str, width: str, name: str) -> _Image:
    # Pillow goes along the height first where that leaves it clearly less to do. The one of two steps along the width
    # that is not needed leaves the width as it is, which costs a copy.
    saved = [writer.op("Sub", *pair) for pair in ((image.height, height), (image.width, width))]
    zero, two = (writer.constants.integers([value]) for value in (0, 2))
    is_less = writer.op("Greater", saved[0], writer.op("Mul", saved[1], two))
    is_upright = writer.op("And", writer.op("Greater", saved[0], zero), is_less)
    first = writer.op("Where", is_upright, image.width, width)
    tensor = image.tensor
    for axis, side in ((_WIDTH, first), (_HEIGHT, height), (_WIDTH, width)):
        exact = writer.op(
            "Resize",
            tensor,
            "",
            "",
            side,
            antialias=1,
            axes=[axis],
            coordinate_transformation_mode="half_pixel",
            cubic_coeff_a=-0.5,
            exclude_outside=1,
            mode=_MODES[name],
        )
        tensor = _rounded(writer, exact)
    return _Image(tensor, height, width)


def _rounded(writer: GraphWriter, values: str) -> str:
    """To the whole number from 0 to 255 that is nearest, halves up."""
    half, low, high = (writer.constants.number(value, TensorProto.FLOAT) for value in (0.5, 0.0, 255.0))
    return writer.op("Clip", writer.op("Floor", writer.op("Add", values, half)), low, high)


def _cropped(writer: GraphWriter, image: _Image, step: CenterCrop) -> _Image:
    """The middle; what the image lacks is black. See `geometry.centre_window`."""
    integers = writer.constants.integers
    zero, one, two = (integers([value]) for value in (0, 1, 2))
    crops = [integers([step.height_px]), integers([step.width_px])]
    starts, ends, before, after = [], [], [], []
    for side, crop in zip((image.height, image.width), crops, strict=True):
        start = writer.op("Max", writer.op("Div", writer.op("Sub", side, crop), two), zero)
        length = writer.op("Min", side, crop)
        lacking = writer.op("Sub", crop, length)
        margin = writer.op("Div", writer.op("Add", lacking, one), two)
        starts.append(start)
        ends.append(writer.op("Add", start, length))
        before.append(margin)
        after.append(writer.op("Sub", lacking, margin))
    axes = integers((_HEIGHT, _WIDTH))
    window = [writer.op("Concat", *places, axis=0) for places in (starts, ends)]
    middle = writer.op("Slice", image.tensor, *window, axes)
    black = writer.constants.number(0.0, TensorProto.FLOAT)
    padded = writer.op("Pad", middle, writer.op("Concat", *before, *after, axis=0), black, axes)
    return _Image(padded, crops[0], crops[1])
