from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from xattn_runtime.bundle import open_bundle
from xattn_runtime.errors import BundleError, ImageError, UserError
from xattn_runtime.tasks import CaptionTask, load

WORDS = ["what", "is", "the", "red", "green", "cat", "dog", "of", "a", "on", "house"]


@pytest.fixture
def task(caption_bundle: Path) -> CaptionTask:
    loaded = load(caption_bundle, threads=1)
    assert isinstance(loaded, CaptionTask)
    return loaded


def test_a_caption_is_the_reference_models(
    task: CaptionTask, noise: Callable[[int], Path], reference_cross: Any, model: Any
) -> None:
    for seed in range(6):
        ids, log_probs = model.greedy(reference_cross(noise(seed)))
        caption = task.caption(noise(seed))
        assert caption.text == " ".join(WORDS[i - 4] for i in ids if i >= 4)
        assert list(caption.token_ids) == ids
        assert caption.score == pytest.approx(np.mean(log_probs), abs=1e-5)


def test_every_way_to_give_a_picture_gives_the_same(task: CaptionTask, noise: Callable[[int], Path]) -> None:
    path = noise(1)
    ways = [path, str(path), path.read_bytes(), Image.open(path), np.asarray(Image.open(path)), task.encode(path)]
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
    together = task.caption_batch(paths)
    assert [caption.token_ids for caption in together] == [task.caption(path).token_ids for path in paths]
    assert [caption.text for caption in together] == [task.caption(path).text for path in paths]
    assert task.caption_batch([]) == []


def test_the_limit(task: CaptionTask, noise: Callable[[int], Path]) -> None:
    paths = [noise(seed) for seed in range(6)]
    assert all(len(task.caption(path, max_new_tokens=2).token_ids) <= 2 for path in paths)
    assert max(len(caption.token_ids) for caption in task.caption_batch(paths, max_new_tokens=2)) == 2
    for limit in (0, -1, 13):
        with pytest.raises(UserError, match=f"max_new_tokens: expected 1 to 12, this bundle's limit, found {limit}"):
            task.caption(paths[0], max_new_tokens=limit)


def test_a_picture_that_cannot_be_used(task: CaptionTask, tmp_path: Path) -> None:
    with pytest.raises(ImageError, match="found no such file"):
        task.caption(tmp_path / "none.png")


def test_a_bundle_of_another_task(vqa_bundle: Path) -> None:
    with pytest.raises(BundleError, match="expected a bundle for caption, found one for vqa"):
        CaptionTask(open_bundle(vqa_bundle))
