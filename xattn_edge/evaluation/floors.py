"""What can be had without a model that sees: the figures that a model must beat."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from itertools import islice

import numpy as np
from numpy.typing import NDArray

from xattn_edge.data.easy_vqa import VqaSample
from xattn_edge.data.emoji_captions import CaptionedImage, EmojiCaptions

__all__ = ["NearestPixels", "question_only_accuracy"]

_POOL_PX = 3
_CHUNK = 256


def question_only_accuracy(train: Sequence[VqaSample], test: Sequence[VqaSample]) -> float:
    """Percentage of `test` answered rightly by the commonest training answer to the same question."""
    counts: defaultdict[str, Counter[str]] = defaultdict(Counter)
    for sample in train:
        counts[sample.question][sample.answer] += 1
    common = {question: count.most_common(1)[0][0] for question, count in counts.items()}
    return 100 * sum(common.get(sample.question) == sample.answer for sample in test) / len(test)


class NearestPixels:
    """The caption of the training image whose pixels (averaged over 3×3) are nearest, by Euclidean distance.

    The memory holds every training image alone, by every training artist, and 20,000 training scenes.
    """

    SCENES = 20_000

    def __init__(self, data: EmojiCaptions) -> None:
        images: list[NDArray[np.float32]] = []
        self._captions: list[str] = []
        for source in (data.training_images(), data.training_scenes(self.SCENES)):
            for sample in source:
                images.append(_pooled(sample.pixels))
                self._captions.append(sample.caption)
        self._images = np.stack(images)
        self._squares = np.square(self._images).sum(1)

    def captions(self, samples: Iterable[CaptionedImage]) -> list[str]:
        """The floor's caption of each sample."""
        captions: list[str] = []
        remaining = iter(samples)
        while chunk := list(islice(remaining, _CHUNK)):
            images = np.stack([_pooled(sample.pixels) for sample in chunk])
            distances = self._squares - 2 * images @ self._images.T
            captions += [self._captions[int(nearest)] for nearest in distances.argmin(1)]
        return captions


def _pooled(pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
    height, width, channels = pixels.shape
    blocks = pixels.reshape(height // _POOL_PX, _POOL_PX, width // _POOL_PX, _POOL_PX, channels)
    pooled: NDArray[np.float32] = blocks.mean((1, 3), dtype=np.float32)
    return pooled.ravel()
