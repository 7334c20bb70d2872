"""Training captioning on the emoji set."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import islice
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer
from torch import Tensor, nn
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
_ALONE_SHARE = 0.5


class CaptionTask:
    """Batches of augmented pictures and their captions between start and end token.

    Two things make the eye learn fast. The first part of the training shows pictures alone. And all along, the mean
    image token must tell, without order, which words the caption holds; that classifier is thrown away afterwards.
    """

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
        self.trained_model = CaptionModel(self.config).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.word_classifier = nn.Linear(recipe.width, self.config.vocabulary)
        self.model = nn.ModuleList([self.trained_model, self.word_classifier])
        glue = self.tokenizer.encode(" ".join([*scene_words(), "with skin tone"])).ids
        self._glue = torch.tensor(sorted({PADDING, START, END, *glue}))

    def batch(self, step: int) -> tuple[Tensor, ...]:
        """Pixels `[batch, 3, side, side]` and token ids `[batch, length]`, padded on the right."""
        first = step * self._recipe.batch
        scenes = step >= _ALONE_SHARE * self._recipe.steps
        samples = [self._data.training_sample(self._seed, first + row, scenes) for row in range(self._recipe.batch)]
        ids = [[START, *self.tokenizer.encode(sample.caption).ids, END] for sample in samples]
        length = max(map(len, ids))
        tokens = torch.tensor([row + [PADDING] * (length - len(row)) for row in ids])
        pixels = normalized(np.stack([sample.pixels for sample in samples]))
        return pixels.contiguous(memory_format=torch.channels_last), tokens

    def loss(self, batch: tuple[Tensor, ...]) -> Tensor:
        """Cross-entropy of the next token, plus that of the caption's words without order."""
        pixels, tokens = batch
        captioner = self.trained_model
        image_tokens = captioner.image_encoder(pixels)
        cross = captioner.project_image(image_tokens)
        past = captioner.empty_cache(len(tokens), cross[0].key.dtype)
        logits = captioner.decode(tokens[:, :-1], past, cross)[0].float()
        next_token = F.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten(), ignore_index=PADDING)
        words = self.word_classifier(image_tokens.mean(1)).float()
        return next_token + F.cross_entropy(words, self._words(tokens))

    def _words(self, tokens: Tensor) -> Tensor:
        """Shares `[batch, vocabulary]` of each caption's own words, those that hold scenes together left out."""
        words = torch.zeros(len(tokens), self.config.vocabulary).scatter_(1, tokens, 1.0)
        words[:, self._glue] = 0.0
        return words / words.sum(1, keepdim=True).clamp(min=1.0)

    def report(self) -> dict[str, Any]:
        """Metrics of every test split, beside those of the nearest training picture."""
        floor = NearestPixels(self._data)
        splits: dict[str, dict[str, Any]] = {}
        for split in SPLITS:
            samples = list(self._data.test_samples(split))
            references = [sample.caption for sample in samples]
            splits[split] = {
                "n": len(references),
                **caption_metrics(self.captions(samples), references),
                "nearest_pixels": caption_metrics(floor.captions(samples), references),
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
            captions += [self.tokenizer.decode(ids) for ids in self.trained_model.generate(pixels)]
        return captions
