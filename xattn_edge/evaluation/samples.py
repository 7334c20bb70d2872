"""Samples to calibrate, search and compare on: images with their texts and references, from data sets or images."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import cycle, islice
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from xattn_runtime.brought_files import is_folder
from xattn_runtime.bundle.folder import Bundle
from xattn_runtime.bundle.task_table import TASKS
from xattn_runtime.errors import DataError, UserError
from xattn_runtime.preprocess.image_files import IMAGE_SUFFIXES, image_files

if TYPE_CHECKING:
    from xattn_runtime.preprocess.image import ImageInput

__all__ = ["DATA_SETS", "GOLDEN", "Sample", "Samples", "calibration_samples", "check_task", "halves", "unseen_samples"]

DATA_SETS = ("easy-vqa", "emoji")
"""Data sets whose samples have a text as their reference."""

GOLDEN = "golden"
"""In place of a data set: the inputs that the bundle itself holds."""

# Of the endless stream of training samples, one that no training takes.
_STREAM = 2**31


@dataclass(frozen=True)
class Sample:
    """An image; a question, prompt or query where the task takes one; and the right answer where it is known."""

    image: ImageInput
    text: str | None = None
    reference: str | None = None


@dataclass(frozen=True)
class Samples:
    """Samples, and what they are called in records."""

    name: str
    items: Sequence[Sample]


def check_task(bundle: Bundle, data: str) -> None:
    """UserError where the data set `data` is for another task than `bundle`, DataError where there is none such."""
    if data not in DATA_SETS:
        expected = f"{', '.join(DATA_SETS)}, a folder of images, or {GOLDEN}"
        if any(data in row.data_sets for row in TASKS.values()):
            raise UserError(f"--data: expected one of {expected}, found {data}, which only `evaluate` reads")
        raise DataError(f"unknown data set {data!r}; expected one of {expected}")
    spec = TASKS[bundle.manifest.task]
    if data not in spec.data_sets or not spec.answers:
        tasks = " and ".join(name for name, row in TASKS.items() if data in row.data_sets and row.answers)
        raise UserError(f"{bundle.path}: expected data for {bundle.manifest.task}, found {data}, which is for {tasks}")


def calibration_samples(bundle: Bundle, data: str, count: int) -> Samples:
    """At most `count` samples for `bundle` that its test does not hold.

    data: a data set, whose training split is taken; a folder of images, with the golden texts of the bundle; or
        `golden`.
    Raises UserError where the data does not fit the task or `count` is not positive, DataError where there is none.
    """
    if count < 1:
        raise UserError(f"expected at least 1 example, found {count}")
    if data == GOLDEN:
        cases = bundle.manifest.golden.cases[:count]
        return Samples(GOLDEN, [Sample(bundle.file(case.image), case.input_text) for case in cases])
    if data and data not in DATA_SETS and is_folder(Path(data)):
        return Samples(Path(data).name, _images(bundle, Path(data), count))
    check_task(bundle, data)
    return Samples(f"{data} train", _easy_vqa("train", count) if data == "easy-vqa" else _emoji_stream(count))


def unseen_samples(bundle: Bundle, data: str, count: int | None) -> Samples:
    """At most `count` samples of the test split of a data set, spread over it. Raises as `calibration_samples`."""
    check_task(bundle, data)
    return Samples(f"{data} test", _easy_vqa("test", count) if data == "easy-vqa" else _emoji_test(count))


def halves(bundle: Bundle, data: str, count: int) -> tuple[Samples, Samples]:
    """At most `count` samples to search on, and as many that it does not see. Raises as `calibration_samples`."""
    if data in DATA_SETS:
        return calibration_samples(bundle, data, count), unseen_samples(bundle, data, count)
    if TASKS[bundle.manifest.task].has_speech:
        raise UserError(
            f"{bundle.path}: expected a bundle whose inputs are images to search on, found one for "
            f"{bundle.manifest.task}; choose a mode, such as --mode int8"
        )
    if data == GOLDEN:
        raise UserError(
            f"--data: expected a data set or a folder of images to search on, found {GOLDEN}, which is too few; "
            "name one, or choose a mode, such as --mode int8"
        )
    samples = calibration_samples(bundle, data, 2 * count)
    if len(samples.items) < 2:
        raise DataError(f"{data}: expected at least 2 images, one to search on and one to confirm it, found 1")
    half = len(samples.items) // 2
    return Samples(f"{samples.name}, first half", samples.items[:half]), Samples(
        f"{samples.name}, second half", samples.items[half:]
    )


def _images(bundle: Bundle, folder: Path, count: int) -> list[Sample]:
    if TASKS[bundle.manifest.task].has_speech:
        raise UserError(
            f"{bundle.path}: expected a bundle whose inputs are images, found one for {bundle.manifest.task}; "
            f"use --data {GOLDEN}, or a mode that needs no data"
        )
    paths = image_files(folder)[:count]
    if not paths:
        raise DataError(f"{folder}: expected images ({', '.join(IMAGE_SUFFIXES)}), found none")
    texts = [case.input_text for case in bundle.manifest.golden.cases]
    return [Sample(path, text) for path, text in zip(paths, cycle(texts), strict=False)]


def _easy_vqa(split: str, count: int | None) -> list[Sample]:
    from xattn_edge.data.easy_vqa import EasyVqa

    samples = EasyVqa().samples(split)
    rows = np.unique(np.linspace(0, len(samples) - 1, min(count or len(samples), len(samples))).astype(int))
    return [Sample(samples[row].image, samples[row].question, samples[row].answer) for row in rows]


def _emoji_stream(count: int) -> list[Sample]:
    from xattn_edge.data.emoji_captions import EmojiCaptions

    data = EmojiCaptions()
    scenes = (data.training_sample(_STREAM, index) for index in range(count))
    return [Sample(sample.pixels, None, sample.caption) for sample in scenes]


def _emoji_test(count: int | None) -> list[Sample]:
    from xattn_edge.data.emoji_captions import SPLITS, EmojiCaptions

    data = EmojiCaptions()
    sizes = {split: data.split_size(split) for split in SPLITS}
    shares = {split: -(-size * (count or 10**9) // sum(sizes.values())) for split, size in sizes.items()}
    return [
        Sample(sample.pixels, None, sample.caption)
        for split in SPLITS
        for sample in islice(data.test_samples(split), shares[split])
    ]
