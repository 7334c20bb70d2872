"""Training captioning on the emoji set."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import islice
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer
from torch import Tensor
from torch.nn import functional as F

from xattn_edge.data.emoji_captions import SPLITS, CaptionedImage, EmojiCaptions
from xattn_edge.data.emoji_names import scene_words
from xattn_edge.data.vocabulary import END, PADDING, START, caption_tokenizer
from xattn_edge.evaluation.floors import NearestPixels
from xattn_edge.evaluation.metrics import caption_metrics
from xattn_edge.models import CaptionConfig, CaptionModel
from xattn_edge.training.pixels import normalized
from xattn_edge.training.recipes import Recipe

__all__ = ["CaptionTask"]

_REPORT_BATCH = 64


class CaptionTask:
    """Batches of augmented pictures and their captions between start and end token."""

    def __init__(self, recipe: Recipe, seed: int) -> None:
        self._data = EmojiCaptions()
        self._recipe, self._seed = recipe, seed
        self.tokenizer: Tokenizer = caption_tokenizer([*self._data.training_captions(), *scene_words()])
        self.config = CaptionConfig(
            **recipe.model_size(),
            vocabulary=self.tokenizer.get_vocab_size(),
            decoder_layers=recipe.layers,
            pad_token_id=PADDING,
            start_token_id=START,
            end_token_id=END,
        )
        self.model: CaptionModel = CaptionModel(self.config).to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def batch(self, step: int) -> tuple[Tensor, ...]:
        """Pixels `[batch, 3, side, side]` and token ids `[batch, length]`, padded on the right."""
        first = step * self._recipe.batch
        samples = [self._data.training_sample(self._seed, first + row) for row in range(self._recipe.batch)]
        ids = [[START, *self.tokenizer.encode(sample.caption).ids, END] for sample in samples]
        length = max(map(len, ids))
        tokens = torch.tensor([row + [PADDING] * (length - len(row)) for row in ids])
        pixels = normalized(np.stack([sample.pixels for sample in samples]))
        return pixels.contiguous(memory_format=torch.channels_last), tokens

    def loss(self, batch: tuple[Tensor, ...]) -> Tensor:
        """Cross-entropy of the next token."""
        pixels, tokens = batch
        logits = self.model(pixels, tokens[:, :-1]).float()
        return F.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten(), ignore_index=PADDING)

    def report(self) -> dict[str, Any]:
        """Metrics of every test split, beside those of the nearest training picture."""
        floor = NearestPixels(self._data)
        splits: dict[str, dict[str, Any]] = {}
        for split in SPLITS:
            references = [sample.caption for sample in self._data.test_samples(split)]
            splits[split] = {
                "n": len(references),
                **caption_metrics(self.captions(self._data.test_samples(split)), references),
                "nearest_pixels": caption_metrics(floor.captions(self._data.test_samples(split)), references),
            }
        total = sum(scores["n"] for scores in splits.values())
        value = sum(scores["exact_match"] * scores["n"] for scores in splits.values()) / total
        return {"metric": "exact_match", "value": value, "n": total, "split": "test", "splits": splits}

    def captions(self, samples: Iterable[CaptionedImage]) -> list[str]:
        """Greedy captions of `samples`."""
        captions: list[str] = []
        remaining = iter(samples)
        while chunk := list(islice(remaining, _REPORT_BATCH)):
            pixels = normalized(np.stack([sample.pixels for sample in chunk]))
            captions += [self.tokenizer.decode(ids) for ids in self.model.generate(pixels)]
        return captions
