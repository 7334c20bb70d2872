"""What Transformers itself gives for a folder of the shelf, and whether a bundle gives the same.

A model is read by `from_pretrained(FOLDER)` and asked as its documentation has it. It knows kinds of answers, and no
architecture.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

__all__ = [
    "QUESTIONS",
    "SHAPES_PX",
    "TEXTS",
    "Answer",
    "Chooses",
    "Embeds",
    "Generates",
    "Truth",
    "answer_of",
    "generate",
    "images",
]

SHAPES_PX = ((61, 40), (33, 97), (150, 30), (18, 90), (128, 128), (310, 233))
"""Width and height of the images."""

QUESTIONS = ("what color is the circle?", "Is there a red square, on the triangle?", "how many are there")

TEXTS = (
    "a photo of a cat", "The Cat, of  the hat!", "zwölf Boxkämpfer", "of 2 dogs?", "a red square on a blue circle", "x",
)  # fmt: skip

_CLOSE = 1e-4


@dataclass(frozen=True)
class Answer:
    """New tokens before the one that ends them, and the text that the folder's tokenizer makes of them."""

    token_ids: tuple[int, ...]
    text: str


class Truth(Protocol):
    """What can be compared with a bundle."""

    def compare(self, task: Any, pictures: Sequence[Image.Image], place: Path) -> None:
        """Fail where the task of a bundle gives something else for the images; `place` is for files."""


@dataclass(frozen=True)
class Generates:
    """A model that writes texts.

    answer: image, question or None, beams or None for as many as the folder says → what it writes.
    asks: whether a question comes with every image; else a prompt may, where there are `prompts`.
    beams: numbers of beams to compare with, None being what the folder says.
    """

    answer: Callable[[Image.Image, str | None, int | None], Answer]
    asks: bool = False
    prompts: tuple[str, ...] = ()
    beams: tuple[int | None, ...] = (None, 3)

    def compare(self, task: Any, pictures: Sequence[Image.Image], place: Path) -> None:
        texts: Sequence[str | None] = QUESTIONS if self.asks else self.prompts or (None,)
        rows = [(picture, texts[number % len(texts)]) for number, picture in enumerate(pictures)]
        for beams in self.beams:
            expected = [self.answer(picture, text, beams) for picture, text in rows]
            actual = [self._asked(task, picture, text, beams) for picture, text in rows]
            differing = [pair for pair in zip(expected, actual, strict=True) if pair[0] != pair[1]]
            assert not differing, (
                f"beams {beams}: {len(differing)} differ; the first, and what was found: {differing[0]}"
            )
            assert len({answer.token_ids for answer in expected}) > 2, "expected texts that differ from image to image"

    def _asked(self, task: Any, picture: Image.Image, text: str | None, beams: int | None) -> Answer:
        more = {} if beams is None else {"beams": beams}
        if self.asks:
            found = task.ask(picture, text, **more)
            return Answer(found.token_ids, found.answer)
        found = task.caption(picture, **({} if text is None else {"prompt": text}), **more)
        return Answer(found.token_ids, found.text)


@dataclass(frozen=True)
class Chooses:
    """A model that chooses among answers with names.

    inputs: image and place for a file → what the bundle is given. logits: that, and a question → `[answers]`.
    names: of the answers.
    """

    inputs: Callable[[Image.Image, Path], Any]
    logits: Callable[[Any, str], NDArray[np.float32]]
    names: Sequence[str]

    def compare(self, task: Any, pictures: Sequence[Image.Image], place: Path) -> None:
        for number, picture in enumerate(pictures):
            given, question = self.inputs(picture, place / f"{number}.npz"), QUESTIONS[number % len(QUESTIONS)]
            expected = self.logits(given, question)
            np.testing.assert_allclose(
                task.logits(task.encode(given), question), expected, atol=_CLOSE * np.abs(expected).max()
            )
            assert task.ask(given, question).answer == self.names[int(expected.argmax())]


@dataclass(frozen=True)
class Embeds:
    """A model that embeds images and texts.

    embed: image and text → their embeddings `[width]`. texts: as many as the images.
    match: image and text → the logit that they belong together, where there is a head for that.
    """

    embed: Callable[[Image.Image, str], tuple[NDArray[np.float32], NDArray[np.float32]]]
    texts: tuple[str, ...]
    match: Callable[[Image.Image, str], float] | None = None

    def compare(self, task: Any, pictures: Sequence[Image.Image], place: Path) -> None:
        pairs = list(zip(pictures, self.texts, strict=True))
        expected_images, expected_texts = (
            np.stack(part) for part in zip(*(self.embed(*pair) for pair in pairs), strict=True)
        )
        np.testing.assert_allclose(task.embed_images(pictures), expected_images, atol=_CLOSE)
        np.testing.assert_allclose(task.embed_texts(self.texts), expected_texts, atol=_CLOSE)
        for embeddings in (expected_images, expected_texts):
            assert np.abs(embeddings - embeddings[0]).max(1)[1:].min() > 100 * _CLOSE, "expected embeddings that differ"
        if self.match is not None:
            expected = np.array([self.match(*pair) for pair in pairs])
            actual = np.array([task.rerank(text, [picture], [0.0])[0] for picture, text in pairs])
            np.testing.assert_allclose(actual, expected, atol=_CLOSE * np.abs(expected).max())


def images() -> list[Image.Image]:
    """Six images of coarse coloured noise, wide, narrow, small and large."""
    generator = np.random.default_rng(1)
    cells = (
        generator.integers(0, 256, (3 + number % 3, 4 + number % 2, 3), dtype=np.uint8)
        for number in range(len(SHAPES_PX))
    )
    return [
        Image.fromarray(part).resize(size, Image.Resampling.BICUBIC)
        for part, size in zip(cells, SHAPES_PX, strict=True)
    ]


def answer_of(words: Any, ids: Sequence[int], start: int, ends: Collection[int]) -> Answer:
    """Of generated ids those from `start` on and before the first that ends them; `words` decodes them."""
    new = ids[start:]
    kept = tuple(new[: next((place for place, token in enumerate(new) if token in ends), len(new))])
    return Answer(kept, words.decode(list(kept), skip_special_tokens=True).strip())


def generate(model: Any, beams: int | None, **inputs: Any) -> list[int]:
    """What `generate()` gives, with the folder's own number of beams if that is None."""
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # advice on how to call it
        found: list[int] = model.generate(**inputs, **({} if beams is None else {"num_beams": beams}))[0].tolist()
    return found
