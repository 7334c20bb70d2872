"""Towers over patches of any grid, and positions that follow the grids of images, beside Transformers' own."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoConfig, AutoModelForImageTextToText

from tests.parity.parity import randomize
from tests.parity.qwen_vl import SMALL
from xattn_export.families.layers.grid_positions import grid_positions
from xattn_export.families.layers.towers.patch_grid import PatchGridTower

# Rows and columns of patches, two of each a token: of one token, a strip, and more than a window, or whole windows.
GRIDS = ((2, 2), (2, 40), (6, 12), (14, 10), (26, 4))
PLACEHOLDER, VIDEO = 90, 91


def model_of(model_type: str) -> Any:
    config = AutoConfig.for_model(
        model_type,
        vision_config=SMALL[model_type]["vision"],
        text_config=SMALL[model_type]["text"] | {"vocab_size": 92},
        image_token_id=PLACEHOLDER,
        video_token_id=VIDEO,
    )
    model = AutoModelForImageTextToText.from_config(config).eval()
    randomize(model)
    return model


@pytest.fixture(scope="module", params=SMALL)
def model(request: pytest.FixtureRequest) -> Any:
    return model_of(request.param)


def test_image_tokens_are_the_models(model: Any) -> None:
    tower = PatchGridTower(model.model.visual).eval()
    generator = torch.Generator().manual_seed(4)
    for rows, columns in GRIDS:
        patches = torch.randn(2, rows * columns, 96, generator=generator)
        grids = torch.tensor([[1, rows, columns]] * 2)
        with torch.inference_mode():
            expected = model.get_image_features(patches.flatten(0, 1), grids)
            (found,) = tower(patches, torch.tensor([rows, columns]))
        levels = [expected.pooler_output, *getattr(expected, "deepstack_features", ())]
        whole = torch.cat([torch.stack(level) for level in levels], -1)
        assert found.shape == whole.shape == (2, rows * columns // 4, 48 * len(levels))
        torch.testing.assert_close(found, whole, rtol=1e-4, atol=1e-5)


def test_windows_keep_patches_apart() -> None:
    tower = PatchGridTower(model_of("qwen2_5_vl").model.visual).eval()
    assert tower.windowed == [True, False, True]
    tower.windowed = [True, True, True]
    patches = torch.randn(1, 6 * 12, 96, generator=torch.Generator().manual_seed(1))
    changed = patches.clone()
    changed[:, :4] += 1  # the first token, of the first window of three by three
    with torch.inference_mode():
        differs = [tower(values, torch.tensor([6, 12]))[0] for values in (patches, changed)]
    touched = (differs[0] != differs[1]).any(-1).reshape(3, 6)
    assert touched[:, :3].all()
    assert not touched[:, 3:].any()


def ids_of(images: list[tuple[int, int]], before: int, after: int) -> list[int]:
    runs = [[5, *[PLACEHOLDER] * (rows * columns), 6] for rows, columns in images]
    return [*[1] * before, *(token for run in runs for token in run), *[2] * after]


@pytest.mark.parametrize(
    "rows",
    [
        [[(1, 1)]],
        [[(2, 5)], [(5, 2)]],
        [[(3, 4), (1, 2), (4, 1)]],
        [[(4, 4)], [(2, 4), (2, 3)]],
    ],
)
def test_positions_are_the_models(rows: list[list[tuple[int, int]]]) -> None:
    model = model_of("qwen2_vl")
    longest = max(len(ids_of(images, 3, 0)) for images in rows)
    ids = torch.tensor([ids_of(images, 3, 2 + longest - len(ids_of(images, 3, 0))) for images in rows])
    grids = torch.zeros(len(rows), max(map(len, rows)), 2, dtype=torch.int64)
    for row, images in enumerate(rows):
        grids[row, : len(images)] = torch.tensor(images)
    thw = torch.tensor([[1, 2 * down, 2 * along] for images in rows for down, along in images])
    expected, deltas = model.model.get_rope_index(ids, (ids == PLACEHOLDER).int(), thw)
    torch.testing.assert_close(grid_positions(ids, grids, PLACEHOLDER, 0), expected)
    for past, length in ((ids.shape[1], 1), (ids.shape[1] + 4, 3)):
        step: Tensor = torch.full((len(rows), length), 7)
        # After the prompt, a placeholder is a token like others.
        step[:, 0] = PLACEHOLDER
        places = torch.arange(past, past + length) + deltas
        torch.testing.assert_close(grid_positions(step, grids, PLACEHOLDER, past), places.expand(3, -1, -1))


def test_positions_of_a_prompt_without_its_image() -> None:
    found = grid_positions(torch.tensor([[1, 2]]), torch.tensor([[[3, 2]]]), PLACEHOLDER, 0)
    assert found.tolist() == [[[0, 1]]] * 3
