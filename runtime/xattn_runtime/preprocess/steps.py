"""The image preprocessing steps that a manifest may name, as typed values, and the one check of their order.

A step knows what size it makes of a size; what it does to pixels is in `pipeline.py`. What is written here is in
docs/bundle-format.md.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import MISSING, asdict, dataclass, fields
from types import MappingProxyType
from typing import ClassVar, Literal, NamedTuple, cast

from xattn_runtime.errors import BundleError
from xattn_runtime.json_reader import ObjectReader
from xattn_runtime.preprocess.geometry import (
    Size,
    area_size,
    longest_edge_size,
    multiple_size,
    round_up,
    shortest_edge_size,
    whole_tiles_size,
)

__all__ = [
    "FILTERS",
    "LARGEST_SIDE_PX",
    "CenterCrop",
    "Color",
    "Filter",
    "Flatten",
    "ImageStep",
    "Normalize",
    "Pad",
    "PadToSquare",
    "PadZeros",
    "Patches",
    "Rescale",
    "Resize",
    "ResizeLongestEdge",
    "ResizeShortestEdge",
    "ResizeStep",
    "ResizeToArea",
    "ResizeToMultiple",
    "Step",
    "Tile",
    "output_size_px",
    "parse_steps",
    "step_to_dict",
]

Color = tuple[int, int, int]
Filter = Literal["nearest", "box", "bilinear", "hamming", "bicubic", "lanczos"]
Position = Literal["center", "top_left"]
FILTERS: tuple[Filter, ...] = ("nearest", "box", "bilinear", "hamming", "bicubic", "lanczos")
LARGEST_SIDE_PX = 8192
_LARGEST_AREA_PX = LARGEST_SIDE_PX**2
_MOST_FRAMES_OF_A_PATCH = 8
_POSITIONS: tuple[Position, ...] = ("center", "top_left")


@dataclass(frozen=True)
class Flatten:
    """To RGB: transparency laid over `background` (8-bit RGB), or where that is None dropped, as Pillow's `convert`."""

    op: ClassVar[str] = "flatten"
    background: Color | None


@dataclass(frozen=True)
class PadToSquare:
    """Centre on a square of the longer side, filled with `background` (8-bit RGB)."""

    op: ClassVar[str] = "pad_to_square"
    background: Color

    def size_of(self, size: Size) -> Size:
        """A square of the longer side."""
        return max(size), max(size)


@dataclass(frozen=True)
class Pad:
    """Lay on a canvas of `height_px` × `width_px`, filled with `background` (8-bit RGB), at `position`."""

    op: ClassVar[str] = "pad"
    height_px: int
    width_px: int
    background: Color
    position: Position


@dataclass(frozen=True)
class CenterCrop:
    """The middle `height_px` × `width_px`; where the image is smaller, it is centred on black."""

    op: ClassVar[str] = "center_crop"
    height_px: int
    width_px: int


@dataclass(frozen=True)
class Resize:
    """To `height_px` × `width_px` with a Pillow filter."""

    op: ClassVar[str] = "resize"
    height_px: int
    width_px: int
    filter: Filter

    def size_of(self, size: Size) -> Size:
        """The same for every image."""
        return self.height_px, self.width_px


@dataclass(frozen=True)
class ResizeShortestEdge:
    """The shorter side to `edge_px`, the longer in proportion, but none above `longest_px` where that is given."""

    op: ClassVar[str] = "resize_shortest_edge"
    edge_px: int
    filter: Filter
    longest_px: int | None = None

    def size_of(self, size: Size) -> Size:
        """See `geometry.shortest_edge_size`."""
        return shortest_edge_size(size, self.edge_px, self.longest_px)


@dataclass(frozen=True)
class ResizeLongestEdge:
    """The longer side to `edge_px`, the shorter in proportion and up to a multiple of `multiple_px`."""

    op: ClassVar[str] = "resize_longest_edge"
    edge_px: int
    filter: Filter
    multiple_px: int = 1

    def size_of(self, size: Size) -> Size:
        """See `geometry.longest_edge_size`."""
        return longest_edge_size(size, self.edge_px, self.multiple_px)


@dataclass(frozen=True)
class ResizeToMultiple:
    """The shorter side to `shortest_px`, none above `longest_px`, both down to multiples of `multiple_px`."""

    op: ClassVar[str] = "resize_to_multiple"
    shortest_px: int
    longest_px: int
    multiple_px: int
    filter: Filter

    def size_of(self, size: Size) -> Size:
        """See `geometry.multiple_size`."""
        return multiple_size(size, self.shortest_px, self.longest_px, self.multiple_px)


@dataclass(frozen=True)
class ResizeToArea:
    """To multiples of `multiple_px` near the image's own sides, `fewest_px` to `most_px` pixels in all."""

    op: ClassVar[str] = "resize_to_area"
    fewest_px: int
    most_px: int
    multiple_px: int
    filter: Filter

    def size_of(self, size: Size) -> Size:
        """See `geometry.area_size`."""
        return area_size(size, self.fewest_px, self.most_px, self.multiple_px)


@dataclass(frozen=True)
class Tile:
    """Up to whole tiles of `side_px`, cut row by row, then the whole image as one tile; a single tile stays alone."""

    op: ClassVar[str] = "tile"
    side_px: int
    filter: Filter

    def size_of(self, size: Size) -> Size:
        """Before it is cut; see `geometry.whole_tiles_size`."""
        return whole_tiles_size(size, self.side_px)


@dataclass(frozen=True)
class Rescale:
    """uint8 to float32: times `factor` in float64, then rounded."""

    op: ClassVar[str] = "rescale"
    factor: float


@dataclass(frozen=True)
class Normalize:
    """`(x - mean) / std`, a channel, in float32."""

    op: ClassVar[str] = "normalize"
    mean: tuple[float, float, float]
    std: tuple[float, float, float]


@dataclass(frozen=True)
class PadZeros:
    """Zeros below and to the right, up to `height_px` × `width_px`."""

    op: ClassVar[str] = "pad_zeros"
    height_px: int
    width_px: int


@dataclass(frozen=True)
class Patches:
    """Squares of `side_px`, each a row of values: channel by channel, `frames` times the same, row by row.

    Those of a square of `merge` × `merge` follow each other row by row, and so do these squares.
    """

    op: ClassVar[str] = "patches"
    side_px: int
    merge: int = 1
    frames: int = 1

    @property
    def width(self) -> int:
        """How many values a patch has."""
        return 3 * self.frames * self.side_px**2


ResizeStep = Resize | ResizeShortestEdge | ResizeLongestEdge | ResizeToMultiple | ResizeToArea
ImageStep = Flatten | PadToSquare | Pad | CenterCrop | ResizeStep | Tile
Step = ImageStep | Rescale | Normalize | PadZeros | Patches


class _Extent(NamedTuple):
    """What is known of an image's size before there is one: exact, or at most that; None for no bound.

    multiple_px: what both sides are multiples of.
    """

    most: Size | None
    exact: bool
    multiple_px: int = 1


def step_to_dict(step: Step) -> dict[str, object]:
    """The step as the manifest writes it; what is at its default is left out."""
    defaults = {field.name: field.default for field in fields(step) if field.default is not MISSING}
    values = {
        key: list(value) if isinstance(value, tuple) else value
        for key, value in asdict(step).items()
        if key not in defaults or value != defaults[key]
    }
    return {"op": step.op, **values}


def parse_steps(readers: Sequence[ObjectReader], file: str) -> tuple[Step, ...]:
    """Typed steps of `preprocessing.image`; BundleError for an unknown op, a bad value or an impossible order."""
    steps = tuple(_parse_step(reader) for reader in readers)
    output_size_px(steps, file)
    return steps


def output_size_px(steps: Sequence[Step], file: str = "manifest.json") -> Size:
    """Height and width of the result (of each tile or patch, where it ends in those), the same for every image.

    Raises BundleError where the order cannot work: `flatten` comes first and once; then pads, crops and resizes in any
    order, `tile` only as the last of them; then exactly one `rescale`, any number of `normalize`, and at most one
    `pad_zeros` or `patches`, the last, never after `tile`. And where the size depends on the image, or may pass that of
    a pad, or is not whole squares of patches.
    """
    at = next((i for i, step in enumerate(steps) if isinstance(step, Rescale)), len(steps))
    images, numbers = steps[:at], steps[at + 1 :]
    kinds = [type(step) for step in images]
    in_order = (
        kinds[:1] == [Flatten]
        and not any(issubclass(kind, Flatten | Normalize | PadZeros | Patches) for kind in kinds[1:])
        and Tile not in kinds[:-1]
        and at < len(steps)
        and all(isinstance(step, Normalize) for step in numbers[:-1])
        and all(isinstance(step, Normalize | PadZeros | Patches) for step in numbers[-1:])
        and not (Tile in kinds and any(isinstance(step, PadZeros | Patches) for step in numbers))
    )
    where = f"{file}: preprocessing.image"
    order = " → ".join(step.op for step in steps) or "no step"
    if not in_order:
        raise BundleError(
            f"{where}: expected flatten → pads, crops and resizes, [tile] last → rescale → [normalize] → [pad_zeros or "
            f"patches], found {order}; export the bundle again"
        )
    extent = _Extent(None, exact=False)
    for step in (*images[1:], *numbers):
        extent = _extent_after(step, extent, where)
    if extent.most is None or not extent.exact:
        raise BundleError(
            f"{where}: expected flatten → steps that give every image the same size (resize, center_crop, pad or "
            f"tile) → rescale, or patches at the end, found {order}; export the bundle again"
        )
    return extent.most


def _extent_after(step: Step, before: _Extent, where: str) -> _Extent:
    match step:
        case CenterCrop() | Resize():
            return _Extent((step.height_px, step.width_px), exact=True)
        case Pad() | PadZeros():
            most = before.most
            if most is None or most[0] > step.height_px or most[1] > step.width_px:
                raise BundleError(
                    f"{where}: {step.op}: expected images of at most {step.height_px} × {step.width_px} pixels, "
                    f"found {'any size' if most is None else f'up to {most[0]} × {most[1]}'} (height × width); "
                    "resize or crop first, or pad to more"
                )
            return _Extent((step.height_px, step.width_px), exact=True)
        case Tile():
            return _Extent((step.side_px, step.side_px), exact=True)
        case Patches():
            return _extent_of_patches(step, before, where)
        case ResizeToArea():
            return _Extent(None, exact=False, multiple_px=step.multiple_px)
        case PadToSquare() | ResizeShortestEdge() | ResizeLongestEdge() | ResizeToMultiple() if before.exact:
            return _Extent(step.size_of(cast(Size, before.most)), exact=True)
        case PadToSquare():
            return _Extent(before.most and step.size_of(before.most), exact=False)
        case ResizeLongestEdge():
            side = round_up(step.edge_px, step.multiple_px)
            return _Extent((side, side), exact=False)
        case ResizeToMultiple():
            side = step.longest_px // step.multiple_px * step.multiple_px
            return _Extent((side, side), exact=False)
        case ResizeShortestEdge():  # rounding may carry it past its longest side
            return _Extent(None, exact=False)
        case _:
            return before


def _extent_of_patches(step: Patches, before: _Extent, where: str) -> _Extent:
    square = step.side_px * step.merge
    sides = before.most if before.most is not None and before.exact else (before.multiple_px,)
    if any(side % square for side in sides):
        raise BundleError(
            f"{where}: patches: expected images of sides that are multiples of {square} pixels, found multiples of "
            f"{' and '.join(map(str, sides))}; resize to such, as resize_to_area does"
        )
    return _Extent((step.side_px, step.side_px), exact=True)


def _parse_step(reader: ObjectReader) -> Step:
    step = _PARSERS[reader.text("op", choices=tuple(_PARSERS))](reader)
    reader.finish()
    return step


def _flatten(reader: ObjectReader) -> Flatten:
    if reader.raw("background", "3 integers from 0 to 255, or null") is None:
        return Flatten(None)
    return Flatten(_color(reader))


def _resize_shortest_edge(reader: ObjectReader) -> ResizeShortestEdge:
    longest_px = _side_px(reader, "longest_px") if "longest_px" in reader else None
    return ResizeShortestEdge(_side_px(reader, "edge_px"), _filter(reader), longest_px)


def _resize_longest_edge(reader: ObjectReader) -> ResizeLongestEdge:
    multiple_px = _side_px(reader, "multiple_px") if "multiple_px" in reader else 1
    return ResizeLongestEdge(_side_px(reader, "edge_px"), _filter(reader), multiple_px)


def _resize_to_multiple(reader: ObjectReader) -> ResizeToMultiple:
    shortest_px, longest_px = _side_px(reader, "shortest_px"), _side_px(reader, "longest_px")
    multiple_px = _side_px(reader, "multiple_px")
    if multiple_px > min(shortest_px, longest_px):
        reader.fail("multiple_px", "at most shortest_px and longest_px", multiple_px)
    return ResizeToMultiple(shortest_px, longest_px, multiple_px, _filter(reader))


def _resize_to_area(reader: ObjectReader) -> ResizeToArea:
    fewest_px, most_px = reader.integer("fewest_px", minimum=1), reader.integer("most_px", minimum=1)
    multiple_px = _side_px(reader, "multiple_px")
    if not max(multiple_px**2, fewest_px) <= most_px <= _LARGEST_AREA_PX:
        least = max(multiple_px**2, fewest_px)
        reader.fail("most_px", f"fewest_px and multiple_px² at least, {least} to {_LARGEST_AREA_PX}", most_px)
    return ResizeToArea(fewest_px, most_px, multiple_px, _filter(reader))


def _patches(reader: ObjectReader) -> Patches:
    merge = _side_px(reader, "merge") if "merge" in reader else 1
    frames = reader.integer("frames", minimum=1) if "frames" in reader else 1
    if frames > _MOST_FRAMES_OF_A_PATCH:
        reader.fail("frames", f"at most {_MOST_FRAMES_OF_A_PATCH}", frames)
    return Patches(_side_px(reader, "side_px"), merge, frames)


def _pad(reader: ObjectReader) -> Pad:
    position = cast(Position, reader.text("position", choices=_POSITIONS))
    return Pad(*_sides_px(reader), _color(reader), position)


def _normalize(reader: ObjectReader) -> Normalize:
    mean, std = reader.numbers("mean", 3), reader.numbers("std", 3)
    if min(std) <= 0:
        reader.fail("std", "3 numbers above 0", list(std))
    return Normalize((mean[0], mean[1], mean[2]), (std[0], std[1], std[2]))


_PARSERS: Mapping[str, Callable[[ObjectReader], Step]] = MappingProxyType(
    {
        Flatten.op: _flatten,
        PadToSquare.op: lambda reader: PadToSquare(_color(reader)),
        Pad.op: _pad,
        CenterCrop.op: lambda reader: CenterCrop(*_sides_px(reader)),
        Resize.op: lambda reader: Resize(*_sides_px(reader), _filter(reader)),
        ResizeShortestEdge.op: _resize_shortest_edge,
        ResizeLongestEdge.op: _resize_longest_edge,
        ResizeToMultiple.op: _resize_to_multiple,
        ResizeToArea.op: _resize_to_area,
        Tile.op: lambda reader: Tile(_side_px(reader, "side_px"), _filter(reader)),
        Rescale.op: lambda reader: Rescale(reader.positive("factor")),
        Normalize.op: _normalize,
        PadZeros.op: lambda reader: PadZeros(*_sides_px(reader)),
        Patches.op: _patches,
    }
)


def _color(reader: ObjectReader) -> Color:
    color = reader.integers("background", maximum=255)
    if len(color) != 3:
        reader.fail("background", "3 integers from 0 to 255", list(color))
    return color[0], color[1], color[2]


def _filter(reader: ObjectReader) -> Filter:
    return cast(Filter, reader.text("filter", choices=FILTERS))


def _sides_px(reader: ObjectReader) -> Size:
    return _side_px(reader, "height_px"), _side_px(reader, "width_px")


def _side_px(reader: ObjectReader, key: str) -> int:
    side = reader.integer(key, minimum=1)
    if side > LARGEST_SIDE_PX:
        reader.fail(key, f"at most {LARGEST_SIDE_PX} pixels", side)
    return side
