"""Images of any size and shape in patches: the original's pixels, and as many image tokens as the shape has."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from PIL import Image
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from tests.runtime.preprocess import test_image_in_text as in_text
from tests.runtime.preprocess.test_image_in_text import END, PLACEHOLDER, SPEC, WIDTH, folder
from xattn_runtime.bundle.decoding import Decoding
from xattn_runtime.bundle.folder import open_bundle
from xattn_runtime.bundle.manifest import Manifest
from xattn_runtime.errors import BundleError, ImageError
from xattn_runtime.json_reader import ObjectReader
from xattn_runtime.loader import load
from xattn_runtime.preprocess.pipeline import Pipeline
from xattn_runtime.preprocess.steps import (
    Flatten,
    Normalize,
    Patches,
    Rescale,
    Resize,
    ResizeToArea,
    Step,
    parse_steps,
    step_to_dict,
)
from xattn_runtime.preprocess.tokenizer import ImageLayout, read_tokenizer
from xattn_runtime.tasks import VqaTask

__all__ = ["folder"]

# Width and height, from a point to what is at the limit of how oblong an image may be.
SHAPES = (
    (1, 1), (4, 4), (12, 12), (3, 200), (200, 3), (64, 64), (65, 63), (100, 37), (37, 100), (7, 1400), (640, 480),
    (333, 222), (20, 28), (300, 300),
)  # fmt: skip
MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
STEPS: tuple[Step, ...] = (
    Flatten((255, 255, 255)),
    ResizeToArea(256, 1024, 8, "bicubic"),
    Rescale(1 / 255),
    Normalize(MEAN, STD),
    Patches(4, 2),
)
LAYOUT = ImageLayout("<image>", None, "on {tokens} on", merge=2)
TO_TOKENS = np.random.default_rng(8).normal(size=(4 * 48, WIDTH), scale=0.1).astype(np.float32)
# What rows and columns of an image do to every token that is read beside it.
FELT = np.array([0.3, -0.2], np.float32)

ENCODER = """<ir_version: 8, opset_import: ["" : 18]> encoder (float[batch,patches,48] patches, int64[2] grid)
    => (float[batch,tokens,8] image_tokens) {
    squares = Reshape(patches, squared)
    tokens = MatMul(squares, to_tokens)
    places = Cast<to=1>(grid)
    size = ReduceSum<keepdims=0>(places)
    share = Mul(size, hundredth)
    image_tokens = Add(tokens, share)
}"""
DECODER = in_text.DECODER.replace(
    "image_tokens, float", "image_tokens, int64[batch,images,2] image_grids, float"
).replace(
    "x = Add(vectors, position)",
    """grids = Cast<to=1>(image_grids)
    weighed = Mul(grids, felt)
    size = ReduceSum<keepdims=1>(weighed, image_axes)
    placed = Add(vectors, position)
    x = Add(placed, size)""",
)
CONSTANTS = {
    "squared": np.array([0, -1, 4 * 48]), "to_tokens": TO_TOKENS, "hundredth": np.array(0.01, np.float32),
    "felt": FELT, "image_axes": np.array([1, 2]),
}  # fmt: skip

Rewrite = Callable[[Path, Manifest], Manifest]


def image_of(shape: tuple[int, int], seed: int = 0) -> Image.Image:
    width, height = shape
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


@pytest.fixture
def patched(folder: Path, rewrite: Rewrite, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(in_text, "CONSTANTS", {**in_text.CONSTANTS, **CONSTANTS})
    manifest = open_bundle(folder).manifest
    for name, text in (("image_encoder", ENCODER), ("decoder", DECODER)):
        onnx.save(in_text.graph(text), folder / "graphs" / f"{name}.onnx")
    tokenizer = replace(SPEC, max_tokens=40, image_layout=LAYOUT)
    decoding = Decoding((), (END,), 0, 8, max_positions=60)
    rewrite(folder, replace(manifest, image_steps=STEPS, tokenizer=tokenizer, decoding=decoding))
    return folder


@pytest.fixture
def answerer(patched: Path, rewrite: Rewrite) -> VqaTask:
    manifest = open_bundle(patched).manifest
    cases = tuple(replace(case, question="the cat") for case in manifest.golden.cases)
    rewrite(patched, replace(manifest, task="vqa", golden=replace(manifest.golden, cases=cases)))
    return load(patched, threads=1, task="vqa")


def answer_of(image: Image.Image, before: list[int], after: list[int]) -> tuple[int, ...]:
    """What is generated greedily, in numpy: the image's tokens in the prompt, its shape felt by every token."""
    cut = Pipeline(STEPS).patches(image)
    tokens = cut.values.reshape(-1, 4 * 48) @ TO_TOKENS + (cut.rows + cut.columns) / 100
    felt = float(np.array([cut.rows, cut.columns]) // 2 @ FELT)
    prompt = [*before, 13, *[PLACEHOLDER] * len(tokens), 13, *after]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(in_text, "POSITIONS", in_text.POSITIONS + np.float32(felt))
        return in_text.greedy(tokens, prompt)


@pytest.mark.parametrize("limits", [(256, 4096), (4096, 65536), (1, 64)])
def test_patches_are_the_originals(limits: tuple[int, int]) -> None:
    original = Qwen2VLImageProcessorPil(
        patch_size=4, size=dict(zip(("shortest_edge", "longest_edge"), limits, strict=True))
    )
    steps = (STEPS[0], ResizeToArea(*limits, 8, "bicubic"), *STEPS[2:4], Patches(4, 2, 2))
    pipeline = Pipeline(steps)
    for number, shape in enumerate(SHAPES):
        image = image_of(shape, number)
        expected = original(image, return_tensors="np")
        found = pipeline.patches(image)
        assert expected["image_grid_thw"].tolist() == [[1, found.rows, found.columns]]
        np.testing.assert_array_equal(found.values, expected["pixel_values"])
        assert pipeline.seen(image).shape == (found.rows * 4, found.columns * 4, 3)
        np.testing.assert_array_equal(pipeline(image), found.values)


def test_a_strip_is_refused_as_by_the_original() -> None:
    with pytest.raises(
        ImageError, match=r"7 × 1401 pixels: expected a longer side of at most 200 times .* found 200\.1"
    ):
        Pipeline(STEPS)(image_of((7, 1401)))
    with pytest.raises(ValueError, match="aspect ratio must be smaller than 200"):
        Qwen2VLImageProcessorPil()(image_of((7, 1401)))


def test_steps_are_written_and_read() -> None:
    written = [step_to_dict(step) for step in STEPS]
    assert written[1] == {
        "op": "resize_to_area", "fewest_px": 256, "most_px": 1024, "multiple_px": 8, "filter": "bicubic",
    }  # fmt: skip
    assert written[-1] == {"op": "patches", "side_px": 4, "merge": 2}
    assert parse_steps([ObjectReader(step, "manifest.json") for step in written], "manifest.json") == STEPS
    assert Pipeline((STEPS[0], Resize(16, 24, "bicubic"), *STEPS[2:])).patches(image_of((9, 9))).columns == 6


@pytest.mark.parametrize(
    ("steps", "error"),
    [
        ((*STEPS[:2], STEPS[-1], *STEPS[2:4]), "found flatten → resize_to_area → patches → rescale"),
        ((*STEPS[:4],), "or patches at the end, found flatten → resize_to_area → rescale"),
        ((STEPS[0], ResizeToArea(64, 999, 12, "bicubic"), *STEPS[2:]), "multiples of 8 pixels, found multiples of 12"),
        ((STEPS[0], Resize(16, 20, "bicubic"), *STEPS[2:]), "found multiples of 16 and 20"),
        ((STEPS[0], *STEPS[2:]), "found multiples of 1"),
        ((*STEPS, STEPS[-1]), "expected flatten → pads"),
    ],
)
def test_an_order_that_cannot_work(steps: tuple[Step, ...], error: str) -> None:
    with pytest.raises(BundleError, match=error):
        Pipeline(steps)


@pytest.mark.parametrize(
    ("op", "change", "error"),
    [
        ("resize_to_area", {"most_px": 255}, "most_px: expected fewest_px and multiple_px² at least, 256 to 67108864"),
        ("resize_to_area", {"most_px": 2**31}, "found 2147483648"),
        ("patches", {"frames": 9}, "frames: expected at most 8"),
        ("patches", {"side_px": 10000}, "side_px: expected at most 8192 pixels"),
    ],
)
def test_a_step_of_a_wrong_value(op: str, change: dict[str, int], error: str) -> None:
    written = [step_to_dict(step) for step in STEPS]
    changed = [step | change if step["op"] == op else step for step in written]
    with pytest.raises(BundleError, match=error):
        parse_steps([ObjectReader(step, "manifest.json") for step in changed], "manifest.json")


def test_the_number_of_image_tokens_follows_from_the_shape() -> None:
    assert LAYOUT.text((2, 3)) == f"on {'<image>' * 6} on"
    assert (LAYOUT.text(), LAYOUT.count((2, 3)), LAYOUT.count()) == ("on <image> on", 6, 1)
    spec = replace(SPEC, image_layout=LAYOUT)
    written = spec.to_dict()
    assert written["image_layout"] == {"token": "<image>", "whole": "on {tokens} on", "merge": 2}
    assert read_tokenizer(ObjectReader(written, "manifest.json")) == spec
    tile = {"tile": "{row} {column} {tokens}"}
    with pytest.raises(BundleError, match="merge: expected none beside a tile"):
        read_tokenizer(ObjectReader(written | {"image_layout": written["image_layout"] | tile}, "manifest.json"))


def test_captions_of_images_of_several_shapes(patched: Path) -> None:
    task = load(patched, threads=1, task="caption")
    shapes = [(16, 16), (40, 16), (16, 40), (40, 16), (90, 9)]
    images = [image_of(shape, seed) for seed, shape in enumerate(shapes)]
    expected = [answer_of(image, [12], [11]) for image in images]
    assert [caption.token_ids for caption in task.caption_each(images, errors="raise")] == expected
    assert len(set(expected)) > 2
    for image, ids in zip(images, expected, strict=True):
        encoded = task.encode(image)
        assert encoded.tensors["image_grids"].tolist() == [[list(encoded.images.grids[0])]]
        assert task.caption(encoded).token_ids == ids
        assert [token.token_id for token in task.stream(encoded) if token.token_id != END] == list(ids)


def test_answers_in_one_run_about_as_many_tokens_in_other_shapes(answerer: VqaTask) -> None:
    wide, upright = image_of((32, 16), 1), image_of((16, 32), 2)
    assert [answerer.encode(image).images.grids for image in (wide, upright)] == [((2, 4),), ((4, 2),)]
    answers = answerer.ask_many([wide, upright, wide], ["the cat", "the cat", "red"])
    asked = ([4, 6, 9, 5], [4, 6, 9, 5], [4, 7, 5])
    for image, after, answer in zip((wide, upright, wide), asked, answers, strict=True):
        assert answer.token_ids == answer_of(image, [], after)
    alone = answerer.ask(upright, "the cat", beams=2)
    assert alone.token_ids == answerer.ask(answerer.encode(upright), "the cat", beams=2).token_ids


@pytest.mark.parametrize(
    "change",
    [
        {"image_layout": in_text.LAYOUT},
        {"image_layout": replace(LAYOUT, merge=4)},
        {"steps": (STEPS[0], Resize(16, 16, "bicubic"), *STEPS[2:4])},
    ],
)
def test_patches_and_their_layout_go_together(patched: Path, rewrite: Rewrite, change: dict[str, Any]) -> None:
    manifest = open_bundle(patched).manifest
    steps = change.pop("steps", STEPS)
    rewrite(patched, replace(manifest, image_steps=steps, tokenizer=replace(manifest.tokenizer, **change)))
    with pytest.raises(BundleError, match="expected preprocessing that ends in patches together with an image_layout"):
        load(patched, threads=1)


def test_more_image_tokens_than_positions(patched: Path, rewrite: Rewrite) -> None:
    manifest = open_bundle(patched).manifest
    rewrite(patched, replace(manifest, decoding=Decoding((), (END,), 0, 8, max_positions=15)))
    task = load(patched, threads=1, task="caption")
    with pytest.raises(ImageError, match=r"fewer than 15 image tokens, .* found 15; scale it down"):
        task.encode(image_of((40, 24)))
    assert task.encode(image_of((16, 16))).images.grids == ((2, 2),)
