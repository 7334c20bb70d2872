from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from xattn_runtime.errors import BundleError, ImageError
from xattn_runtime.preprocess import pipeline
from xattn_runtime.preprocess.pipeline import Pipeline
from xattn_runtime.preprocess.steps import (
    FILTERS,
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
    Step,
    Tile,
)

WHITE = (255, 255, 255)
MEAN, STD = (0.48, 0.45, 0.4), (0.26, 0.27, 0.28)


def _steps(*pictures: Step) -> list[Step]:
    return [Flatten(WHITE), *pictures, Rescale(1 / 255), Normalize(MEAN, STD)]


def _numbers(picture: Image.Image) -> np.ndarray:
    values = (np.asarray(picture).astype(np.float64) * (1 / 255)).astype(np.float32)
    return ((values - np.array(MEAN, np.float32)) / np.array(STD, np.float32)).transpose(2, 0, 1)


@pytest.mark.parametrize("name", FILTERS)
def test_resize_is_pillows_bit_for_bit(name: Any) -> None:
    picture = Image.effect_noise((37, 23), 80).convert("RGB")
    found = Pipeline(_steps(Resize(16, 12, name)))(picture)
    expected = _numbers(picture.resize((12, 16), Image.Resampling[name.upper()]))
    assert found.shape == (3, 16, 12)
    assert found.dtype == np.float32
    assert found.flags.c_contiguous
    assert np.array_equal(found, expected)


@settings(deadline=None, max_examples=30)
@given(width=st.integers(1, 40), height=st.integers(1, 40))
def test_padding_centres_on_a_square(width: int, height: int) -> None:
    side = max(width, height)
    expected = np.full((side, side, 3), (9, 8, 7), np.uint8)
    top, left = (side - height) // 2, (side - width) // 2
    expected[top : top + height, left : left + width] = (200, 0, 50)
    steps: list[Any] = [Flatten(WHITE), PadToSquare((9, 8, 7)), Resize(side, side, "nearest"), Rescale(1.0)]
    found = Pipeline(steps)(Image.new("RGB", (width, height), (200, 0, 50)))
    assert np.array_equal(found, expected.transpose(2, 0, 1))


def test_transparency_is_laid_over_the_background() -> None:
    picture = Image.new("RGBA", (2, 1), (255, 0, 0, 0))
    picture.putpixel((1, 0), (255, 0, 0, 128))
    found = Pipeline([Flatten((0, 0, 255)), Resize(1, 2, "nearest"), Rescale(1.0)])(picture)
    assert found[:, 0, 0].tolist() == [0, 0, 255]
    assert np.abs(found[:, 0, 1] - [128, 0, 127]).max() <= 1


def test_without_a_background_transparency_is_dropped() -> None:
    picture = Image.new("RGBA", (2, 1), (255, 10, 20, 0))
    found = Pipeline([Flatten(None), Resize(1, 2, "nearest"), Rescale(1.0)])(picture)
    assert found[:, 0, 0].tolist() == [255, 10, 20]


def test_values_are_rescaled_in_double_precision() -> None:
    grey = Image.fromarray(np.arange(256, dtype=np.uint8)[None]).convert("RGB")
    found = Pipeline([Flatten(None), Resize(1, 256, "nearest"), Rescale(1 / 255)])(grey)
    assert np.array_equal(found[1, 0], (np.arange(256) / 255).astype(np.float32))


@settings(deadline=None, max_examples=40)
@given(width=st.integers(1, 20), height=st.integers(1, 20))
def test_a_crop_takes_the_middle_or_lies_on_black(width: int, height: int) -> None:
    pixels = np.random.default_rng(width * 50 + height).integers(1, 256, (height, width, 3)).astype(np.uint8)
    found = Pipeline([Flatten(None), CenterCrop(9, 10), Rescale(1.0)])(pixels).transpose(1, 2, 0)
    (top, above, rows), (left, before, columns) = (
        (0, -((side - 9 - i) // 2), side) if side < 9 + i else ((side - 9 - i) // 2, 0, 9 + i)
        for i, side in enumerate((height, width))
    )
    expected = np.zeros((9, 10, 3))
    expected[above : above + rows, before : before + columns] = pixels[top : top + rows, left : left + columns]
    assert np.array_equal(found, expected)


@pytest.mark.parametrize(("position", "top", "left"), [("center", 1, 2), ("top_left", 0, 0)])
def test_a_pad_lies_where_it_is_told(position: Any, top: int, left: int) -> None:
    pixels = np.full((4, 3, 3), 200, np.uint8)
    steps: list[Any] = [Flatten(None), Resize(4, 3, "nearest"), Pad(6, 8, (1, 2, 3), position), Rescale(1.0)]
    expected = np.full((6, 8, 3), (1, 2, 3))
    expected[top : top + 4, left : left + 3] = 200
    assert np.array_equal(Pipeline(steps)(pixels).transpose(1, 2, 0), expected)


def test_zeros_come_after_the_numbers() -> None:
    steps: list[Any] = [
        Flatten(None),
        ResizeLongestEdge(4, "nearest"),
        Rescale(1.0),
        Normalize(MEAN, STD),
        PadZeros(5, 6),
    ]
    found = Pipeline(steps)(np.zeros((2, 8, 3), np.uint8))
    assert found.shape == (3, 5, 6)
    assert np.allclose(found[:, :1, :4], -np.array(MEAN)[:, None, None] / np.array(STD)[:, None, None])
    assert not found[:, 1:].any()
    assert not found[:, :, 4:].any()


def test_tiles_are_cut_row_by_row_and_end_with_the_whole() -> None:
    picture = Image.effect_noise((48, 32), 80).convert("RGB")
    tiled = Pipeline([Flatten(None), ResizeLongestEdge(48, "bicubic"), Tile(16, "bicubic"), Rescale(1.0)])
    tiles = tiled.tiles(picture)
    assert (tiled.tiled, tiled.size_px, tiles.rows, tiles.columns) == (True, (16, 16), 2, 3)
    assert np.array_equal(tiled(picture), tiles.pixels)
    expected = [
        *(picture.crop((left, top, left + 16, top + 16)) for top in (0, 16) for left in (0, 16, 32)),
        picture.resize((16, 16), Image.Resampling.BICUBIC),
    ]
    assert np.array_equal(tiles.pixels, [np.asarray(tile).transpose(2, 0, 1) for tile in expected])


def test_what_is_not_cut_is_one_tile() -> None:
    plain = Pipeline([Flatten(None), Resize(4, 4, "bicubic"), Rescale(1.0)])
    tiles = plain.tiles(Image.new("RGB", (9, 9)))
    assert (plain.tiled, tiles.pixels.shape, tiles.rows, tiles.columns) == (False, (1, 3, 4, 4), 0, 0)


@pytest.mark.parametrize("name", ["bilinear", "bicubic", "lanczos"])
@pytest.mark.parametrize("size", [(1, 400), (3, 401), (401, 3), (9, 150), (13, 11)])
def test_of_a_strip_only_the_part_that_stays_is_computed(
    name: Any, size: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    picture = Image.fromarray(np.random.default_rng(2).integers(0, 256, (size[1], size[0], 3)).astype(np.uint8))
    for crop in (CenterCrop(24, 24), CenterCrop(17, 40), CenterCrop(40, 9)):
        steps: list[Any] = [Flatten(None), ResizeShortestEdge(24, name), crop, Rescale(1.0)]
        whole = Pipeline(steps)(picture)
        monkeypatch.setattr(pipeline, "PIXEL_LIMIT", 0)
        part = Pipeline(steps)(picture)
        monkeypatch.undo()
        assert np.abs(part - whole).max() <= 1
        assert np.mean(part != whole) < 0.1


def test_a_strip_is_cropped_without_growing_to_gigabytes() -> None:
    pixels = np.random.default_rng(6).integers(0, 256, (1_000_000, 1, 3)).astype(np.uint8)
    found = Pipeline([Flatten(None), ResizeShortestEdge(224, "bicubic"), CenterCrop(224, 224), Rescale(1.0)])(pixels)
    near = Image.fromarray(pixels[499_990:500_010]).resize((224, 20 * 224), Image.Resampling.BICUBIC)
    expected = np.asarray(near)[2128 : 2128 + 224].astype(float)
    assert np.abs(found.transpose(1, 2, 0) - expected).max() <= 1


def test_a_strip_that_would_be_kept_whole_is_refused() -> None:
    steps: list[Any] = [
        Flatten(None),
        ResizeShortestEdge(224, "bicubic"),
        PadToSquare(WHITE),
        CenterCrop(224, 224),
        Rescale(1.0),
    ]
    with pytest.raises(ImageError, match="1 × 4000 pixels: expected at most 100 megapixels once resized, found 200"):
        Pipeline(steps)(Image.new("RGB", (1, 4000)))


@pytest.mark.parametrize("name", FILTERS)
@pytest.mark.parametrize("size", [(97, 20), (20, 97), (64, 1), (1, 64), (80, 79), (79, 80)])
def test_of_a_panorama_on_a_square_only_the_panorama_is_computed(
    name: Any, size: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    picture = Image.fromarray(np.random.default_rng(4).integers(0, 256, (size[1], size[0], 3)).astype(np.uint8))
    side = max(size)
    square = Image.new("RGB", (side, side), (3, 140, 250))
    square.paste(picture, ((side - size[0]) // 2, (side - size[1]) // 2))
    monkeypatch.setattr(pipeline, "_CANVAS_PIXEL_LIMIT", 1000)
    for height, width in ((16, 16), (13, 16), (2, 15), (16, 3)):
        found = Pipeline(_steps(PadToSquare((3, 140, 250)), Resize(height, width, name)))(picture)
        expected = square.resize((width, height), Image.Resampling[name.upper()])
        assert np.array_equal(found, _numbers(expected))
    steps = _steps(PadToSquare((3, 140, 250)), Resize(16, 16, name), CenterCrop(10, 20))
    expected = square.resize((16, 16), Image.Resampling[name.upper()]).crop((-2, 3, 18, 13))
    assert np.array_equal(Pipeline(steps)(picture), _numbers(expected))


def test_a_panorama_is_padded_without_its_square() -> None:
    pixels = np.zeros((140, 13_000, 3), np.uint8)
    pixels[:, 6_500:] = (200, 100, 50)
    found = Pipeline([Flatten(None), PadToSquare(WHITE), Resize(65, 65, "bilinear"), Rescale(1.0)])(pixels)
    # 140 of the 200 rows that the middle one stands for, and bilinear counts the middle ones most.
    assert found[:, 0, 0].tolist() == found[:, 64, 64].tolist() == [255, 255, 255]
    assert found[0, 32, 0] == found[2, 32, 0] < 255 * (1 - 0.7 * 0.65 - 0.05)
    assert found[0, 32, 60] > found[1, 32, 60] > found[2, 32, 60] > found[0, 32, 0]


def test_what_is_too_long_for_any_square_is_refused_with_its_name(tmp_path: Path) -> None:
    Image.new("RGB", (1, 10_001)).save(tmp_path / "rule.png")
    Image.new("RGB", (1, 140_000)).save(tmp_path / "thread.png")
    little = Pipeline(_steps(PadToSquare(WHITE), Resize(8192, 8, "bicubic")))
    with pytest.raises(ImageError, match=r"rule.png: 1 × 10001 pixels: .* once padded, found 100.1; crop it"):
        little(tmp_path / "rule.png")
    small = Pipeline(_steps(PadToSquare(WHITE), Resize(8, 8, "bicubic")))
    assert small(tmp_path / "rule.png").shape == (3, 8, 8)
    with pytest.raises(ImageError, match=r"thread.png: 1 × 140000 pixels: expected at most 100 megapixels once padded"):
        small(tmp_path / "thread.png")


def test_padding_after_the_resize_counts() -> None:
    assert Pipeline(_steps(Resize(8, 4, "bicubic"), PadToSquare(WHITE))).size_px == (8, 8)


@pytest.mark.parametrize(
    "steps",
    [
        [],
        [Resize(8, 8, "bicubic"), Rescale(1.0)],
        [Flatten(WHITE), Rescale(1.0)],
        [Flatten(WHITE), Resize(8, 8, "bicubic")],
        [Flatten(WHITE), Rescale(1.0), Resize(8, 8, "bicubic")],
        [Flatten(WHITE), Normalize(MEAN, STD), Resize(8, 8, "bicubic"), Rescale(1.0)],
        [Flatten(WHITE), Resize(8, 8, "bicubic"), Rescale(1.0), Rescale(1.0)],
        [Flatten(WHITE), Flatten(WHITE), Resize(8, 8, "bicubic"), Rescale(1.0)],
    ],
)
def test_impossible_orders_are_refused_before_any_picture(steps: list[Step]) -> None:
    with pytest.raises(BundleError, match=r"preprocessing\.image: expected flatten →"):
        Pipeline(steps)
