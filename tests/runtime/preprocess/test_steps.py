"""What a manifest may say of image preprocessing, and the sizes that its steps make."""

from __future__ import annotations

from typing import Any

import pytest

from xattn_runtime.errors import BundleError
from xattn_runtime.json_reader import ObjectReader
from xattn_runtime.preprocess.geometry import Window, centre_window
from xattn_runtime.preprocess.steps import (
    CenterCrop,
    Flatten,
    Normalize,
    Pad,
    PadToSquare,
    PadZeros,
    Rescale,
    Resize,
    ResizeLongestEdge,
    ResizeShortestEdge,
    ResizeToMultiple,
    Step,
    Tile,
    output_size_px,
    parse_steps,
    step_to_dict,
)

BLACK = (0, 0, 0)
FIRST, LAST = Flatten(None), Rescale(1 / 255)
HALF = Normalize((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))

STEPS: list[tuple[Step, dict[str, Any]]] = [
    (Flatten(None), {"op": "flatten", "background": None}),
    (Flatten(BLACK), {"op": "flatten", "background": [0, 0, 0]}),
    (PadToSquare(BLACK), {"op": "pad_to_square", "background": [0, 0, 0]}),
    (
        Pad(8, 9, (1, 2, 3), "top_left"),
        {"op": "pad", "height_px": 8, "width_px": 9, "background": [1, 2, 3], "position": "top_left"},
    ),
    (CenterCrop(8, 9), {"op": "center_crop", "height_px": 8, "width_px": 9}),
    (Resize(8, 9, "nearest"), {"op": "resize", "height_px": 8, "width_px": 9, "filter": "nearest"}),
    (ResizeShortestEdge(8, "bicubic"), {"op": "resize_shortest_edge", "edge_px": 8, "filter": "bicubic"}),
    (
        ResizeShortestEdge(8, "bicubic", 12),
        {"op": "resize_shortest_edge", "edge_px": 8, "filter": "bicubic", "longest_px": 12},
    ),
    (ResizeLongestEdge(8, "lanczos"), {"op": "resize_longest_edge", "edge_px": 8, "filter": "lanczos"}),
    (
        ResizeLongestEdge(8, "lanczos", 2),
        {"op": "resize_longest_edge", "edge_px": 8, "filter": "lanczos", "multiple_px": 2},
    ),
    (
        ResizeToMultiple(8, 12, 4, "bilinear"),
        {"op": "resize_to_multiple", "shortest_px": 8, "longest_px": 12, "multiple_px": 4, "filter": "bilinear"},
    ),
    (Tile(8, "lanczos"), {"op": "tile", "side_px": 8, "filter": "lanczos"}),
    (LAST, {"op": "rescale", "factor": 1 / 255}),
    (HALF, {"op": "normalize", "mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0.5]}),
    (PadZeros(8, 9), {"op": "pad_zeros", "height_px": 8, "width_px": 9}),
]


@pytest.mark.parametrize(("step", "written"), STEPS, ids=[str(written) for _, written in STEPS])
def test_a_step_is_written_and_read_again(step: Step, written: dict[str, Any]) -> None:
    assert step_to_dict(step) == written
    whole: list[dict[str, Any]] = [step_to_dict(one) for one in (FIRST, Resize(4, 4, "bicubic"), LAST)]
    if written["op"] in ("flatten", "rescale"):
        at = [one["op"] for one in whole].index(written["op"])
        whole[at] = written
    else:
        at = 3 if isinstance(step, Normalize | PadZeros) else 2
        whole.insert(at, written)
    assert _parse(whole)[at] == step


WRONG = [
    ({"op": "flatten"}, "background: expected 3 integers from 0 to 255, or null, found no such key"),
    ({"op": "flatten", "background": [1, 2]}, "background: expected 3 integers from 0 to 255, found [1, 2]"),
    ({"op": "crop"}, "op: expected one of flatten, pad_to_square, pad, center_crop, resize, "),
    ({"op": "center_crop", "height_px": 0, "width_px": 1}, "height_px: expected an integer of at least 1, found 0"),
    ({"op": "center_crop", "height_px": 1, "width_px": 8193}, "width_px: expected at most 8192 pixels, found 8193"),
    (
        {"op": "pad", "height_px": 1, "width_px": 1, "background": [0, 0, 0], "position": "left"},
        "position: expected one of center, top_left, found 'left'",
    ),
    ({"op": "resize_shortest_edge", "edge_px": 8}, "filter: expected one of nearest, "),
    (
        {"op": "resize_shortest_edge", "edge_px": 8, "filter": "bicubic", "longest_px": None},
        "longest_px: expected an integer of at least 1, found None",
    ),
    (
        {"op": "resize_to_multiple", "shortest_px": 8, "longest_px": 9, "multiple_px": 10, "filter": "bicubic"},
        "multiple_px: expected at most shortest_px and longest_px, found 10",
    ),
    ({"op": "tile", "side_px": 8, "filter": "lanczos", "overlap": 1}, "overlap: expected only the keys"),
]


@pytest.mark.parametrize(("written", "message"), WRONG, ids=[message for _, message in WRONG])
def test_a_wrong_value_is_named(written: dict[str, Any], message: str) -> None:
    with pytest.raises(BundleError) as caught:
        _parse([written])
    assert f"manifest.json: preprocessing.image[0].{message}" in str(caught.value)


SHAPED: list[tuple[list[Step], tuple[int, int]]] = [
    ([Resize(8, 4, "bicubic")], (8, 4)),
    ([Resize(8, 4, "bicubic"), PadToSquare(BLACK)], (8, 8)),
    ([Resize(9, 6, "bicubic"), ResizeShortestEdge(4, "bicubic")], (6, 4)),
    ([Resize(9, 6, "bicubic"), ResizeLongestEdge(4, "bicubic")], (4, 2)),
    ([ResizeShortestEdge(8, "bicubic"), CenterCrop(8, 7)], (8, 7)),
    ([CenterCrop(8, 7)], (8, 7)),
    ([ResizeLongestEdge(7, "lanczos", 2), Pad(8, 9, BLACK, "center")], (8, 9)),
    ([ResizeLongestEdge(7, "lanczos"), PadToSquare(BLACK), Pad(8, 9, BLACK, "center")], (8, 9)),
    ([ResizeToMultiple(10, 16, 5, "bicubic"), Pad(15, 15, BLACK, "top_left")], (15, 15)),
    ([ResizeLongestEdge(7, "lanczos"), Tile(4, "lanczos")], (4, 4)),
    ([Tile(4, "lanczos")], (4, 4)),
]


@pytest.mark.parametrize(("pictures", "size"), SHAPED, ids=[str(pictures) for pictures, _ in SHAPED])
def test_the_size_is_known_before_any_picture(pictures: list[Step], size: tuple[int, int]) -> None:
    assert output_size_px([FIRST, *pictures, LAST, HALF]) == size


def test_zeros_give_a_size_too() -> None:
    assert output_size_px([FIRST, ResizeToMultiple(10, 16, 5, "bicubic"), LAST, HALF, PadZeros(20, 15)]) == (20, 15)


@pytest.mark.parametrize(
    "pictures",
    [
        [],
        [PadToSquare(BLACK)],
        [ResizeShortestEdge(8, "bicubic")],
        [ResizeShortestEdge(8, "bicubic", 20)],
        [ResizeLongestEdge(8, "bicubic")],
        [ResizeToMultiple(8, 20, 4, "bicubic")],
        [Resize(8, 8, "bicubic"), CenterCrop(4, 4), ResizeShortestEdge(8, "bicubic"), PadToSquare(BLACK)][2:],
    ],
)
def test_a_size_that_depends_on_the_picture_is_refused(pictures: list[Step]) -> None:
    with pytest.raises(BundleError, match="expected flatten → steps that give every image the same size"):
        output_size_px([FIRST, *pictures, LAST])


@pytest.mark.parametrize(
    ("steps", "found"),
    [
        ([FIRST, Pad(8, 8, BLACK, "center"), LAST], "any size"),
        ([FIRST, ResizeShortestEdge(4, "bicubic", 8), Pad(8, 8, BLACK, "center"), LAST], "any size"),
        ([FIRST, ResizeLongestEdge(9, "bicubic"), Pad(8, 9, BLACK, "center"), LAST], "up to 9 × 9"),
        ([FIRST, ResizeLongestEdge(9, "bicubic", 2), Pad(9, 9, BLACK, "center"), LAST], "up to 10 × 10"),
        ([FIRST, Resize(9, 9, "bicubic"), LAST, PadZeros(9, 8)], "up to 9 × 9"),
    ],
)
def test_a_pad_that_a_picture_may_pass_is_refused(steps: list[Step], found: str) -> None:
    with pytest.raises(BundleError, match=f"expected images of at most . × . pixels, found {found} "):
        output_size_px(steps)


@pytest.mark.parametrize(
    "steps",
    [
        [Resize(8, 8, "bicubic"), FIRST, LAST],
        [FIRST, Tile(8, "bicubic"), Resize(8, 8, "bicubic"), LAST],
        [FIRST, Tile(8, "bicubic"), LAST, PadZeros(9, 9)],
        [FIRST, Resize(8, 8, "bicubic"), PadZeros(9, 9), LAST],
        [FIRST, Resize(8, 8, "bicubic"), LAST, PadZeros(9, 9), HALF],
        [FIRST, Resize(8, 8, "bicubic"), LAST, PadZeros(9, 9), PadZeros(9, 9)],
        [FIRST, Resize(8, 8, "bicubic"), LAST, CenterCrop(4, 4)],
        [FIRST, Resize(8, 8, "bicubic"), LAST, LAST],
        [FIRST, FIRST, Resize(8, 8, "bicubic"), LAST],
    ],
)
def test_impossible_orders_are_refused(steps: list[Step]) -> None:
    with pytest.raises(BundleError, match="expected flatten → pads, crops and resizes, "):
        output_size_px(steps)


# Height and width before and after. The longer side is truncated, never rounded: 7 × 10 to 5 gives 7.14.
SIZES: list[tuple[Any, tuple[int, int], tuple[int, int]]] = [
    (ResizeShortestEdge(5, "bicubic"), (7, 10), (5, 7)),
    (ResizeShortestEdge(5, "bicubic"), (10, 7), (7, 5)),
    (ResizeShortestEdge(7, "bicubic"), (10, 7), (10, 7)),
    (ResizeShortestEdge(5, "bicubic"), (3, 3), (5, 5)),
    (ResizeShortestEdge(5, "bicubic", 6), (10, 30), (2, 6)),
    (ResizeShortestEdge(5, "bicubic", 6), (1, 30), (1, 6)),
    (ResizeShortestEdge(224, "bicubic"), (4000, 1), (896_000, 224)),
    (ResizeLongestEdge(5, "bicubic"), (7, 10), (3, 5)),
    (ResizeLongestEdge(5, "bicubic"), (10, 7), (5, 3)),
    (ResizeLongestEdge(5, "bicubic", 2), (7, 10), (4, 5)),
    (ResizeLongestEdge(5, "bicubic", 2), (8, 8), (6, 5)),
    (ResizeLongestEdge(50, "bicubic", 2), (4000, 1), (50, 1)),
    (ResizeToMultiple(384, 639, 32, "bicubic"), (480, 640), (384, 512)),
    (ResizeToMultiple(384, 639, 32, "bicubic"), (640, 480), (512, 384)),
    (ResizeToMultiple(384, 639, 32, "bicubic"), (301, 401), (384, 512)),
    (ResizeToMultiple(384, 639, 32, "bicubic"), (900, 300), (608, 192)),
    (ResizeToMultiple(384, 639, 32, "bicubic"), (4000, 1), (608, 32)),
    (Tile(64, "lanczos"), (64, 64), (64, 64)),
    (Tile(64, "lanczos"), (65, 64), (128, 128)),
    (Tile(64, "lanczos"), (10, 200), (64, 256)),
    (Tile(64, "lanczos"), (1, 4000), (64, 4032)),
]


@pytest.mark.parametrize(("step", "before", "after"), SIZES)
def test_sizes_are_computed_to_the_pixel(step: Any, before: tuple[int, int], after: tuple[int, int]) -> None:
    assert step.size_of(before) == after


def test_a_crop_is_centred_up_and_left_but_down_and_right_on_black() -> None:
    assert centre_window((9, 8), (4, 4)) == Window(2, 2, 4, 4, 0, 0)
    assert centre_window((3, 9), (6, 4)) == Window(0, 2, 3, 4, 2, 0)


def _parse(steps: list[dict[str, Any]]) -> tuple[Step, ...]:
    readers = [ObjectReader(step, "manifest.json", f"preprocessing.image[{i}]") for i, step in enumerate(steps)]
    return parse_steps(readers, "manifest.json")
