"""Pictures in tiles: encoded a few tiles at a time, and written into the prompt row by row."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.runtime.preprocess.test_image_in_text import END, IMAGE, LAYOUT, PLACEHOLDER, SPEC, TOKENS, folder, greedy
from tests.support.tiny_bundle import STEPS
from xattn_runtime.bundle.decoding import Decoding
from xattn_runtime.bundle.folder import open_bundle
from xattn_runtime.bundle.manifest import Manifest
from xattn_runtime.errors import BundleError, QuestionError
from xattn_runtime.execution.session import open_session
from xattn_runtime.generate import search
from xattn_runtime.generate.greedy import greedy as greedy_search
from xattn_runtime.json_reader import ObjectReader
from xattn_runtime.loader import load
from xattn_runtime.preprocess.pipeline import Pipeline
from xattn_runtime.preprocess.steps import Flatten, ResizeLongestEdge, Tile
from xattn_runtime.preprocess.tokenizer import ImageLayout, read_tokenizer
from xattn_runtime.tasks import CaptionTask, VqaTask

__all__ = ["folder"]

TILED = replace(LAYOUT, tile="cat {row} {column} {tokens}", row_end=" red ", before_whole=" dog ")
CUT = (Flatten((255, 255, 255)), ResizeLongestEdge(32, "bicubic"), Tile(16, "bicubic"), *STEPS[-2:])
CAT, RED, DOG, UNKNOWN = 9, 7, 10, 1
SIZES = {(1, 2): (40, 15), (2, 1): (9, 30), (2, 2): (33, 30)}

Rewrite = Callable[[Path, Manifest], Manifest]


def picture_of(grid: tuple[int, int], seed: int) -> Image.Image:
    width, height = SIZES[grid]
    values = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(values)


def written(grid: tuple[int, int]) -> list[int]:
    """The tokens of a picture that is cut into a grid; the vocabulary knows no numbers."""
    tile = [CAT, UNKNOWN, UNKNOWN, *[PLACEHOLDER] * TOKENS]
    return [token for _ in range(grid[0]) for token in (*tile * grid[1], RED)] + [DOG, *IMAGE]


@pytest.fixture
def tiled(folder: Path, rewrite: Rewrite) -> Path:
    manifest = open_bundle(folder).manifest
    tokenizer, decoding = replace(SPEC, max_tokens=40, image_layout=TILED), Decoding((), (END,), 0, 8, max_positions=60)
    rewrite(folder, replace(manifest, image_steps=CUT, tokenizer=tokenizer, decoding=decoding))
    return folder


@pytest.fixture
def captioner(tiled: Path) -> CaptionTask:
    return load(tiled, threads=1, task="caption")


@pytest.fixture
def answerer(tiled: Path, rewrite: Rewrite) -> VqaTask:
    manifest = open_bundle(tiled).manifest
    cases = tuple(replace(case, question="the cat") for case in manifest.golden.cases)
    rewrite(tiled, replace(manifest, task="vqa", golden=replace(manifest.golden, cases=cases)))
    return load(tiled, threads=1, task="vqa")


def test_a_picture_is_written_row_by_row_and_then_as_a_whole() -> None:
    layout = ImageLayout("i", 2, "<{tokens}>", "[{row}.{column}{tokens}]", "\n", "-")
    assert layout.text((2, 3)) == "[1.1ii][1.2ii][1.3ii]\n[2.1ii][2.2ii][2.3ii]\n-<ii>"
    assert layout.text() == "<ii>"
    assert (layout.count((2, 3)), layout.count()) == (14, 2)


def test_tiles_are_encoded_one_after_the_other(captioner: CaptionTask) -> None:
    picture = picture_of((2, 2), 3)
    encoded = captioner.encode(picture)
    assert encoded.images.grids == ((2, 2),)
    encoder = open_session(captioner.bundle, "image_encoder", captioner.settings)
    tiles = Pipeline(CUT)(picture)
    assert len(tiles) == 5
    alone = [encoder.run(["image_tokens"], {"pixel_values": tile[None]})[0][0] for tile in tiles]
    np.testing.assert_allclose(encoded.tensors["image_tokens"][0], np.concatenate(alone), rtol=1e-5, atol=1e-6)


def test_captions_of_pictures_that_are_cut_in_other_ways(captioner: CaptionTask) -> None:
    grids = [(1, 2), (2, 2), (2, 1), (1, 2), (2, 1)]
    pictures = [picture_of(grid, seed) for seed, grid in enumerate(grids)]
    found = list(captioner.caption_each(pictures, errors="raise"))
    for picture, grid, caption in zip(pictures, grids, found, strict=True):
        encoded = captioner.encode(picture)
        prompt = [12, *written(grid), 11]
        expected = greedy(encoded.tensors["image_tokens"][0], prompt)
        assert caption.token_ids == expected == captioner.caption(picture).token_ids
        steps = [int(step.token_ids[0]) for step in captioner.steps(encoded)]
        assert tuple(steps[: len(expected)]) == expected
    assert len({caption.token_ids for caption in found}) > 2


def test_answers_about_pictures_that_are_cut_in_other_ways(answerer: VqaTask) -> None:
    asked = {"the cat": [6, 9], "red": [7]}
    pairs = [(picture_of(grid, seed), grid, question) for seed, grid in enumerate(SIZES) for question in asked]
    answers = answerer.ask_many([picture for picture, _, _ in pairs], [question for _, _, question in pairs])
    for (picture, grid, question), answer in zip(pairs, answers, strict=True):
        encoded = answerer.encode(picture)
        prompt = [*written(grid), 4, *asked[question], 5]
        assert answer.token_ids == greedy(encoded.tensors["image_tokens"][0], prompt)
        assert answer.token_ids == answerer.ask(picture, question).token_ids
        logits = answerer.logits(encoded, question, answer.token_ids)
        assert tuple(logits.argmax(1)[: len(answer.token_ids)]) == answer.token_ids


def test_a_wrong_question_shows_before_the_picture_is_opened(answerer: VqaTask) -> None:
    with pytest.raises(QuestionError, match="found an empty text"):
        answerer.ask("no-such-picture.png", " ")


def test_rows_with_a_long_prompt_run_a_few_at_a_time(captioner: CaptionTask, monkeypatch: pytest.MonkeyPatch) -> None:
    pictures = [picture_of((1, 2), seed) for seed in range(5)]
    together = [caption.token_ids for caption in captioner.caption_each(pictures, errors="raise")]
    batches, plain = [], greedy_search

    def counting(decoder: Any, image: Any, *others: Any) -> Any:
        batches.append(len(image["image_tokens"]))
        return plain(decoder, image, *others)

    monkeypatch.setattr(search, "greedy", counting)
    monkeypatch.setattr(search, "_MOST_PROMPT_TOKENS", 60)
    assert [caption.token_ids for caption in captioner.caption_each(pictures, errors="raise")] == together
    assert batches == [2, 2, 1]


@pytest.mark.parametrize("change", [{"image_layout": LAYOUT}, {"steps": STEPS}])
def test_tiles_and_their_layout_go_together(tiled: Path, rewrite: Rewrite, change: dict[str, Any]) -> None:
    manifest = open_bundle(tiled).manifest
    steps = change.pop("steps", CUT)
    rewrite(tiled, replace(manifest, image_steps=steps, tokenizer=replace(manifest.tokenizer, **change)))
    with pytest.raises(BundleError, match="expected preprocessing that ends in tiles together with an image_layout"):
        load(tiled, threads=1)


def test_tiles_need_an_image_encoder_of_image_tokens(caption_copy: Path, rewrite: Rewrite) -> None:
    rewrite(caption_copy, replace(open_bundle(caption_copy).manifest, image_steps=CUT))
    with pytest.raises(BundleError, match="found tiles, no layout of tiles, and cross_key_0"):
        load(caption_copy, threads=1)


LAYOUT_VALUES = {"token": "<image>", "tokens": 4, "whole": "{tokens}", "tile": "{row}{column}{tokens}", "row_end": "\n"}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"tile": "{row} {tokens}"}, r"image_layout.tile: expected a text with \{column\} in it once"),
        ({"tile": "{row} {column}"}, r"image_layout.tile: expected a text with \{tokens\} in it once"),
        ({"row_end": 3}, "image_layout.row_end: expected a string, found 3"),
        ({"before_whole": None}, "image_layout.before_whole: expected a string, found None"),
        ({"after": ""}, "image_layout.after: expected only the keys"),
    ],
)
def test_wrong_layouts_are_named(change: dict[str, Any], message: str) -> None:
    values = SPEC.to_dict() | {"image_layout": LAYOUT_VALUES | change}
    with pytest.raises(BundleError, match=message):
        read_tokenizer(ObjectReader(values, "manifest.json", "tokenizer"))


def test_what_only_tiles_have_is_refused_without_them() -> None:
    values = SPEC.to_dict() | {"image_layout": {key: LAYOUT_VALUES[key] for key in LAYOUT_VALUES if key != "tile"}}
    with pytest.raises(BundleError, match=r"image_layout\.row_end: expected only the keys"):
        read_tokenizer(ObjectReader(values, "manifest.json", "tokenizer"))


def test_a_layout_of_tiles_reads_back_the_same() -> None:
    spec = replace(SPEC, image_layout=TILED)
    assert spec.to_dict()["image_layout"]["tile"] == TILED.tile
    assert read_tokenizer(ObjectReader(spec.to_dict(), "manifest.json")) == spec
