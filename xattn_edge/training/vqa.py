"""Training visual question answering on easy-VQA."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from itertools import groupby
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from tokenizers import Tokenizer
from torch import Tensor
from torch.nn import functional as F

from xattn_edge.data.easy_vqa import EasyVqa, VqaSample
from xattn_edge.data.vocabulary import PADDING, UNKNOWN, question_tokenizer
from xattn_edge.evaluation.floors import question_only_accuracy
from xattn_edge.models import VqaConfig, VqaModel
from xattn_edge.training.combination import Combination, vqa_config
from xattn_edge.training.pixels import normalized
from xattn_edge.training.recipes import Recipe

__all__ = ["VqaTraining"]

_QUESTIONS_PER_IMAGE = 4
_UNKNOWN_WORD_SHARE = 0.03
_NO_QUESTION_MARK_SHARE = 0.3
_SHIFT_PX = 4


class VqaTraining:
    """Batches of images with four questions each; an image is encoded once for its questions."""

    def __init__(self, recipe: Recipe, seed: int, text_encoder: str, combination: Combination | None = None) -> None:
        self._data = EasyVqa()
        self._recipe, self._seed = recipe, seed
        self._train = _by_image(self._data.samples("train"))
        self._images = np.stack([_read(samples[0], recipe.image_size_px) for samples in self._train])
        self.tokenizer: Tokenizer = question_tokenizer(s.question for samples in self._train for s in samples)
        self._question_mark = self.tokenizer.token_to_id("?")
        self.config = vqa_config(
            recipe,
            self.tokenizer.get_vocab_size(),
            self._data.answers,
            text_encoder=text_encoder,
            combination=combination,
        )
        self.model = VqaModel(self.config)

    @property
    def trained_model(self) -> VqaModel:
        """What goes into the checkpoint."""
        return self.model

    @property
    def recorded(self) -> dict[str, Any]:
        """What the checkpoint says of its preprocessing beside that of the images: nothing."""
        return {}

    def begin(self, config: VqaConfig, seed: int) -> None:
        """Begin anew with a model of this configuration, random weights, and other batches."""
        self.config, self._seed = config, seed
        self.model = VqaModel(config)

    def batch(self, step: int) -> tuple[Tensor, ...]:
        """Pixels `[images, 3, side, side]`, ids and mask `[images · 4, length]`, answers `[images · 4]`."""
        rng = np.random.default_rng((self._seed, step))
        rows = rng.choice(len(self._train), self._recipe.batch, replace=False)
        pixels = np.stack([_augmented(rng, self._images[row]) for row in rows])
        chosen = [
            self._train[row][index]
            for row in rows
            for index in rng.choice(len(self._train[row]), _QUESTIONS_PER_IMAGE, replace=True)
        ]
        ids = [self._worn(rng, self.tokenizer.encode(sample.question).ids) for sample in chosen]
        input_ids, mask = _padded(ids)
        answers = torch.tensor([self.config.answers.index(sample.answer) for sample in chosen])
        return normalized(pixels), input_ids, mask, answers

    def loss(self, batch: tuple[Tensor, ...]) -> Tensor:
        """Cross-entropy of the answers."""
        pixels, input_ids, mask, answers = batch
        logits = self._answer(pixels, input_ids, mask, lambda tensor: tensor.repeat_interleave(_QUESTIONS_PER_IMAGE, 0))
        return F.cross_entropy(logits.float(), answers)

    def _answer(self, pixels: Tensor, input_ids: Tensor, mask: Tensor, repeated: Callable[[Tensor], Tensor]) -> Tensor:
        """Logits of the questions; `repeated` makes a row for each of them of what was encoded of the images."""
        return self.model.answer(input_ids, mask, [repeated(each) for each in self.model.encode_image(pixels)])

    def samples(self) -> tuple[list[VqaSample], list[VqaSample]]:
        """All questions of the training and of the test split."""
        return self._data.samples("train"), self._data.samples("test")

    def test_questions(self, images: int) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """The first images of the test split, so many, and all questions about them.

        Returns:
            Pixels `[images, 3, side, side]`; of each question its ids and mask `[questions, length]`, the number of its
            image and that of its answer, `[questions]`.
        """
        shown = _by_image(self._data.samples("test"))[:images]
        pixels = np.stack([_read(samples[0], self._recipe.image_size_px) for samples in shown])
        numbered = [(number, sample) for number, samples in enumerate(shown) for sample in samples]
        input_ids, mask = _padded([self.tokenizer.encode(sample.question).ids for _, sample in numbered])
        answers = [self.config.answers.index(sample.answer) for _, sample in numbered]
        return (
            normalized(pixels),
            input_ids,
            mask,
            torch.tensor([number for number, _ in numbered]),
            torch.tensor(answers),
        )

    @torch.inference_mode()
    def report(self) -> dict[str, Any]:
        """Accuracy on the official test split, and of answering from the question alone; percentages."""
        train, test = self.samples()
        right = 0
        for samples in _by_image(test):
            pixels = normalized(_read(samples[0], self._recipe.image_size_px)[None])
            input_ids, mask = _padded([self.tokenizer.encode(sample.question).ids for sample in samples])
            repeated = partial(torch.repeat_interleave, repeats=len(samples), dim=0)
            best = self._answer(pixels, input_ids, mask, repeated).argmax(1).tolist()
            right += sum(
                self.config.answers[index] == sample.answer for index, sample in zip(best, samples, strict=True)
            )
        return {
            "metric": "accuracy",
            "value": 100 * right / len(test),
            "n": len(test),
            "split": "test",
            "floors": {"question_only": question_only_accuracy(train, test)},
        }

    def _worn(self, rng: np.random.Generator, ids: list[int]) -> list[int]:
        """Now and then an unknown word, or no question mark: so that careless questions are understood."""
        if ids[-1] == self._question_mark and rng.random() < _NO_QUESTION_MARK_SHARE:
            ids = ids[:-1]
        return [UNKNOWN if rng.random() < _UNKNOWN_WORD_SHARE else word for word in ids]


def _by_image(samples: list[VqaSample]) -> list[list[VqaSample]]:
    return [list(group) for _, group in groupby(samples, key=lambda sample: sample.image)]


def _read(sample: VqaSample, side_px: int) -> NDArray[np.uint8]:
    with Image.open(sample.image, formats=("PNG",)) as image:
        return np.asarray(image.convert("RGB").resize((side_px, side_px), Image.Resampling.BICUBIC))


def _augmented(rng: np.random.Generator, pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Mirrored and shifted: the questions name neither side nor place."""
    if rng.random() < 0.5:
        pixels = pixels[:, ::-1]
    if rng.random() < 0.5:
        pixels = pixels[::-1]
    shift = rng.integers(0, 2 * _SHIFT_PX + 1, 2)
    padded = np.pad(pixels, ((_SHIFT_PX, _SHIFT_PX), (_SHIFT_PX, _SHIFT_PX), (0, 0)), mode="edge")
    side = pixels.shape[0]
    return padded[shift[0] : shift[0] + side, shift[1] : shift[1] + side]


def _padded(ids: list[list[int]]) -> tuple[Tensor, Tensor]:
    """Input ids and attention mask, int64 `[batch, longest]`, padded on the right."""
    length = max(map(len, ids))
    input_ids = torch.tensor([row + [PADDING] * (length - len(row)) for row in ids])
    mask = torch.tensor([[1] * len(row) + [0] * (length - len(row)) for row in ids])
    return input_ids, mask
