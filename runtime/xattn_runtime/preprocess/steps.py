"""The image preprocessing steps that a manifest may name, as typed values, and the one check of their order.

What each step computes is in `pipeline.py`; what is written here is in docs/bundle-format.md.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import ClassVar, Literal, cast

from xattn_runtime._reading import ObjectReader
from xattn_runtime.errors import BundleError

__all__ = [
    "FILTERS",
    "Color",
    "Filter",
    "Flatten",
    "Normalize",
    "PadToSquare",
    "Rescale",
    "Resize",
    "Step",
    "output_size_px",
    "parse_steps",
    "step_to_dict",
]

Color = tuple[int, int, int]
Filter = Literal["nearest", "bilinear", "bicubic", "lanczos"]
FILTERS: tuple[Filter, ...] = ("nearest", "bilinear", "bicubic", "lanczos")
_LARGEST_SIDE_PX = 8192


@dataclass(frozen=True)
class Flatten:
    """To RGB, transparency laid over `background` (8-bit RGB)."""

    op: ClassVar[str] = "flatten"
    background: Color


@dataclass(frozen=True)
class PadToSquare:
    """Centre on a square of the longer side, filled with `background` (8-bit RGB)."""

    op: ClassVar[str] = "pad_to_square"
    background: Color


@dataclass(frozen=True)
class Resize:
    """To `height_px` × `width_px` with a Pillow filter."""

    op: ClassVar[str] = "resize"
    height_px: int
    width_px: int
    filter: Filter


@dataclass(frozen=True)
class Rescale:
    """uint8 to float32, times `factor`."""

    op: ClassVar[str] = "rescale"
    factor: float


@dataclass(frozen=True)
class Normalize:
    """`(x - mean) / std`, a channel."""

    op: ClassVar[str] = "normalize"
    mean: tuple[float, float, float]
    std: tuple[float, float, float]


Step = Flatten | PadToSquare | Resize | Rescale | Normalize
_OPS: tuple[str, ...] = (Flatten.op, PadToSquare.op, Resize.op, Rescale.op, Normalize.op)


def step_to_dict(step: Step) -> dict[str, object]:
    """The step as the manifest writes it."""
    values = {key: list(value) if isinstance(value, tuple) else value for key, value in asdict(step).items()}
    return {"op": step.op, **values}


def parse_steps(readers: Sequence[ObjectReader], file: str) -> tuple[Step, ...]:
    """Typed steps of `preprocessing.image`; BundleError for an unknown op, a bad value or an impossible order."""
    steps = tuple(_parse_step(reader) for reader in readers)
    output_size_px(steps, file)
    return steps


def output_size_px(steps: Sequence[Step], file: str = "manifest.json") -> tuple[int, int]:
    """Height and width of the result, the same for every picture.

    Raises BundleError where the order cannot work: `flatten` comes first and once, at least one `resize`, then exactly
    one `rescale`, after which only `normalize` may come.
    """
    found = " → ".join(step.op for step in steps) or "no step"
    kinds = [type(step) for step in steps]
    pictures, numbers = _split_at_rescale(steps)
    in_order = (
        kinds[:1] == [Flatten]
        and kinds.count(Flatten) == 1
        and kinds.count(Rescale) == 1
        and not any(isinstance(step, Normalize) for step in pictures)
        and all(isinstance(step, Normalize) for step in numbers)
    )
    size: tuple[int, int] | None = None
    for step in pictures:
        if isinstance(step, Resize):
            size = (step.height_px, step.width_px)
        elif isinstance(step, PadToSquare) and size is not None:
            size = (max(size), max(size))
    if not in_order or size is None:
        raise BundleError(
            f"{file}: preprocessing.image: expected flatten → [pad_to_square] → resize → rescale → [normalize], "
            f"found {found}; export the bundle again"
        )
    return size


def _split_at_rescale(steps: Sequence[Step]) -> tuple[Sequence[Step], Sequence[Step]]:
    at = next((i for i, step in enumerate(steps) if isinstance(step, Rescale)), len(steps))
    return steps[:at], steps[at + 1 :]


def _parse_step(reader: ObjectReader) -> Step:
    op = reader.text("op", choices=_OPS)
    step: Step
    if op == Flatten.op:
        step = Flatten(_color(reader))
    elif op == PadToSquare.op:
        step = PadToSquare(_color(reader))
    elif op == Resize.op:
        step = Resize(
            _side_px(reader, "height_px"),
            _side_px(reader, "width_px"),
            cast(Filter, reader.text("filter", choices=FILTERS)),
        )
    elif op == Rescale.op:
        step = Rescale(reader.positive("factor"))
    else:
        step = _normalize(reader)
    reader.finish()
    return step


def _color(reader: ObjectReader) -> Color:
    color = reader.integers("background", maximum=255)
    if len(color) != 3:
        reader.fail("background", "3 integers from 0 to 255", list(color))
    return color[0], color[1], color[2]


def _side_px(reader: ObjectReader, key: str) -> int:
    side = reader.integer(key, minimum=1)
    if side > _LARGEST_SIDE_PX:
        reader.fail(key, f"at most {_LARGEST_SIDE_PX} pixels", side)
    return side


def _normalize(reader: ObjectReader) -> Normalize:
    mean, std = reader.numbers("mean", 3), reader.numbers("std", 3)
    if min(std) <= 0:
        reader.fail("std", "3 numbers above 0", list(std))
    return Normalize((mean[0], mean[1], mean[2]), (std[0], std[1], std[2]))
