from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from xattn_runtime.bundle.folder import open_bundle
from xattn_runtime.bundle.manifest import Manifest
from xattn_runtime.errors import BundleError, ImageError, UserError
from xattn_runtime.generate.options import DecodingOptions
from xattn_runtime.loader import load
from xattn_runtime.tasks import CaptionTask

WORDS = ["what", "is", "the", "red", "green", "cat", "dog", "of", "a", "on", "house"]


@pytest.fixture
def task(caption_bundle: Path) -> CaptionTask:
    return load(caption_bundle, threads=1, task="caption")


def test_a_caption_is_the_reference_models(
    task: CaptionTask, noise: Callable[[int], Path], reference_cross: Any, model: Any
) -> None:
    for seed in range(6):
        ids, log_probs = model.greedy(reference_cross(noise(seed)))
        caption = task.caption(noise(seed))
        assert caption.text == " ".join(WORDS[i - 4] for i in ids if i >= 4)
        assert list(caption.token_ids) == ids
        assert caption.score == pytest.approx(np.mean(log_probs), abs=1e-5)


def test_a_caption_begins_with_a_start_token_that_is_a_word(
    caption_copy: Path, rewrite: Callable[[Path, Manifest], Manifest], noise: Callable[[int], Path]
) -> None:
    """As `decode(…, skip_special_tokens=True)` has it of what `generate()` returns; streamed, and to stop at, too."""
    manifest = open_bundle(caption_copy).manifest
    assert manifest.decoding is not None
    rewrite(
        caption_copy, replace(manifest, decoding=replace(manifest.decoding, prompt_token_ids=(5,), end_token_ids=()))
    )
    task = load(caption_copy, task="caption", threads=1)
    caption = task.caption(noise(0))
    assert len(caption.token_ids) > 1
    assert caption.text == " ".join(["is", *(WORDS[i - 4] for i in caption.token_ids if i >= 4)])
    assert "".join(step.text for step in task.stream(noise(0))) == caption.text
    assert task.caption(noise(0), options=DecodingOptions(stop=("is",))).text == ""


def test_without_a_token_that_ends_the_most_tokens_are_generated(
    caption_copy: Path, rewrite: Callable[[Path, Manifest], Manifest], noise: Callable[[int], Path]
) -> None:
    manifest = open_bundle(caption_copy).manifest
    assert manifest.decoding is not None
    rewrite(caption_copy, replace(manifest, decoding=replace(manifest.decoding, end_token_ids=())))
    task = load(caption_copy, task="caption", threads=1)
    for beams in (1, 2):
        assert len(task.caption(noise(0), beams=beams).token_ids) == manifest.decoding.max_new_tokens


def test_every_way_to_give_a_picture_gives_the_same(task: CaptionTask, noise: Callable[[int], Path]) -> None:
    path = noise(1)
    ways: list[Any] = [
        path,
        str(path),
        path.read_bytes(),
        Image.open(path),
        np.asarray(Image.open(path)),
        task.encode(path),
    ]
    assert len({task.caption(way).token_ids for way in ways}) == 1


def test_timing(task: CaptionTask, noise: Callable[[int], Path]) -> None:
    timing = task.caption(noise(0)).timing_ms
    assert min(timing.preprocess, timing.encode, timing.decode) > 0
    assert timing.total >= timing.preprocess + timing.encode + timing.decode
    known = task.caption(task.encode(noise(0))).timing_ms
    assert known.preprocess == known.encode == 0
    assert known.total >= known.decode > 0


def test_a_batch_gives_what_each_picture_gives_alone(task: CaptionTask, noise: Callable[[int], Path]) -> None:
    paths = [noise(seed) for seed in range(20)]
    together = list(task.caption_each(paths, errors="raise"))
    assert [caption.token_ids for caption in together] == [task.caption(path).token_ids for path in paths]
    assert [caption.text for caption in together] == [task.caption(path).text for path in paths]
    assert list(task.caption_each([], errors="raise")) == []


def test_the_limit(task: CaptionTask, noise: Callable[[int], Path]) -> None:
    paths = [noise(seed) for seed in range(6)]
    assert all(len(task.caption(path, max_new_tokens=2).token_ids) <= 2 for path in paths)
    assert max(len(caption.token_ids) for caption in task.caption_each(paths, max_new_tokens=2, errors="raise")) == 2
    for limit in (0, -1, 13):
        with pytest.raises(UserError, match=f"max_new_tokens: expected 1 to 12, this bundle's limit, found {limit}"):
            task.caption(paths[0], max_new_tokens=limit)


def test_a_caption_goes_on_from_a_prompt(
    task: CaptionTask, noise: Callable[[int], Path], reference_cross: Any, model: Any
) -> None:
    changed = 0
    for seed in range(8):
        cross, ids = reference_cross(noise(seed)), [6, 7]
        while len(ids) < 12 and (best := int(model.forced_logits(cross, ids)[-1].argmax())) != 3:
            ids.append(best)
        caption = task.caption(noise(seed), prompt="the red")
        assert list(caption.token_ids) == ids[2:]
        assert caption.text == " ".join(WORDS[i - 4] for i in ids[2:] if i >= 4)
        changed += caption.token_ids != task.caption(noise(seed)).token_ids
    assert changed
    assert (
        next(task.caption_each([noise(0)], prompt="the red", errors="raise")).token_ids
        == task.caption(noise(0), "the red").token_ids
    )


def test_a_bundle_and_its_caller_choose_the_search(
    task: CaptionTask, caption_copy: Path, rewrite: Any, noise: Callable[[int], Path]
) -> None:
    manifest = open_bundle(caption_copy).manifest
    assert manifest.decoding is not None
    rewrite(caption_copy, replace(manifest, decoding=replace(manifest.decoding, beams=4, no_repeat_ngram_size=1)))
    beaming = CaptionTask(open_bundle(caption_copy), threads=1)
    for seed in range(8):
        ids = beaming.caption(noise(seed)).token_ids
        assert len(set(ids)) == len(ids)
        assert task.caption(noise(seed), beams=1).token_ids == task.caption(noise(seed)).token_ids
    ways = [[way.caption(noise(seed), beams=beams).token_ids for seed in range(8)] for way, beams in
            ((task, 1), (task, 4), (beaming, 1), (beaming, None))]  # fmt: skip
    assert len({tuple(way) for way in ways}) == 4
    for beams in (0, 65):
        with pytest.raises(UserError, match=f"beams: expected 1 to 64, found {beams}"):
            task.caption(noise(0), beams=beams)


def test_a_bundle_that_names_tokens_that_there_are_not(caption_copy: Path, rewrite: Any) -> None:
    manifest = open_bundle(caption_copy).manifest
    assert manifest.decoding is not None
    rewrite(caption_copy, replace(manifest, decoding=replace(manifest.decoding, suppressed_token_ids=(99,))))
    with pytest.raises(BundleError, match="found 15 and the token 99; export it again"):
        CaptionTask(open_bundle(caption_copy))


def test_a_picture_that_cannot_be_used(task: CaptionTask, tmp_path: Path) -> None:
    with pytest.raises(ImageError, match="found no such file"):
        task.caption(tmp_path / "none.png")


def test_a_bundle_of_another_task(vqa_bundle: Path) -> None:
    with pytest.raises(BundleError, match="expected a bundle for caption, found one for vqa"):
        CaptionTask(open_bundle(vqa_bundle))
