from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from xattn_runtime.errors import BundleError, ImageError
from xattn_runtime.preprocess.pipeline import Pipeline
from xattn_runtime.preprocess.steps import FILTERS, Flatten, Normalize, PadToSquare, Rescale, Resize, Step

WHITE = (255, 255, 255)
MEAN, STD = (0.48, 0.45, 0.4), (0.26, 0.27, 0.28)


def _steps(*pictures: Step) -> list[Step]:
    return [Flatten(WHITE), *pictures, Rescale(1 / 255), Normalize(MEAN, STD)]


def _numbers(picture: Image.Image) -> np.ndarray:
    values = (np.asarray(picture).astype(np.float64) * (1 / 255)).astype(np.float32)
    return ((values - np.array(MEAN, np.float32)) / np.array(STD, np.float32)).transpose(2, 0, 1)


@pytest.mark.parametrize("name", FILTERS)
def test_resize_is_pillows_bit_for_bit(name: str) -> None:
    picture = Image.effect_noise((37, 23), 80).convert("RGB")
    found = Pipeline(_steps(Resize(16, 12, name)))(picture)  # type: ignore[arg-type]
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
    steps = [Flatten(WHITE), PadToSquare((9, 8, 7)), Resize(side, side, "nearest"), Rescale(1.0)]
    found = Pipeline(steps)(Image.new("RGB", (width, height), (200, 0, 50)))
    assert np.array_equal(found, expected.transpose(2, 0, 1))


def test_transparency_is_laid_over_the_background() -> None:
    picture = Image.new("RGBA", (2, 1), (255, 0, 0, 0))
    picture.putpixel((1, 0), (255, 0, 0, 128))
    found = Pipeline([Flatten((0, 0, 255)), Resize(1, 2, "nearest"), Rescale(1.0)])(picture)
    assert found[:, 0, 0].tolist() == [0, 0, 255]
    assert np.abs(found[:, 0, 1] - [128, 0, 127]).max() <= 1


def test_a_long_strip_is_not_padded_to_gigabytes() -> None:
    pipeline = Pipeline(_steps(PadToSquare(WHITE), Resize(8, 8, "bicubic")))
    with pytest.raises(ImageError, match="1 × 20000 pixels: expected at most 100 megapixels once padded"):
        pipeline(Image.new("RGB", (1, 20_000)))


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
