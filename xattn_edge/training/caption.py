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
from torch.nn.attention import SDPBackend, sdpa_kernel

from xattn_edge.data.emoji_captions import SPLITS, CaptionedImage, EmojiCaptions
from xattn_edge.data.emoji_names import scene_words
from xattn_edge.data.vocabulary import END, PADDING, START, caption_tokenizer
from xattn_edge.evaluation.floors import NearestPixels
from xattn_edge.evaluation.metrics import caption_metrics
from xattn_edge.models import CaptionModel
from xattn_edge.training.combination import Combination, caption_config
from xattn_edge.training.pixels import normalized
from xattn_edge.training.recipes import Recipe

__all__ = ["CaptionTraining"]

_REPORT_BATCH = 64
_SHEETS_SHARE = 0.4
"""Of the steps: those on sheets come first, and cost less time than those on captioned images."""


class CaptionTraining:
    """Batches of augmented images, their captions between start and end token, and where each thing stands.

    Two things make the image encoder learn fast. The first part of the training shows sheets of four images without
    captions. And throughout, the image token nearest to the middle of each thing must tell its concept and its skin
    tone; those two classifiers are thrown away afterwards.
    """

    def __init__(self, recipe: Recipe, seed: int, combination: Combination | None = None) -> None:
        self._data = EmojiCaptions()
        self._recipe, self._seed = recipe, seed
        self.tokenizer: Tokenizer = caption_tokenizer([*self._data.training_captions(), *scene_words()])
        self.config = caption_config(
            recipe,
            self.tokenizer.get_vocab_size(),
            pad_token_id=PADDING,
            start_token_id=START,
            end_token_id=END,
            combination=combination,
        )
        model = CaptionModel(self.config)
        self.trained_model = model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.concept_classifier = nn.Linear(recipe.width, len(self._data.concepts))
        self.tone_classifier = nn.Linear(recipe.width, len(self._data.tones))
        self.model = nn.ModuleList([self.trained_model, self.concept_classifier, self.tone_classifier])

    @property
    def recorded(self) -> dict[str, Any]:
        """What the checkpoint says of its preprocessing beside that of the images: nothing."""
        return {}

    def batch(self, step: int) -> tuple[Tensor, ...]:
        """Pixels, token ids and things of a step.

        Returns:
            Pixels `[batch, 3, side, side]` float32; ids int64 `[batch, length]`, padded on the right, of length 0 for
            sheets; things int64 `[things, 4]`: row in the batch, image token, concept, tone.
        """
        sheets = step < _SHEETS_SHARE * self._recipe.steps
        draw = self._data.training_sheet if sheets else self._data.training_sample
        first = step * self._recipe.batch
        samples = [draw(self._seed, first + row) for row in range(self._recipe.batch)]
        pixels = normalized(np.stack([sample.pixels for sample in samples]))
        tokens = torch.empty((len(samples), 0), dtype=torch.int64) if sheets else self._tokens(samples)
        return pixels.contiguous(memory_format=torch.channels_last), tokens, self._things(samples)

    def loss(self, batch: tuple[Tensor, ...]) -> Tensor:
        """Cross-entropy of concept and tone of each thing, and of the next token where there are captions."""
        pixels, tokens, things = batch
        rows, places, concepts, tones = things.unbind(1)
        # The fused kernel takes three times as long on a CPU in bfloat16, most of it backwards.
        with sdpa_kernel(SDPBackend.MATH):
            image_tokens = self.trained_model.image_encoder(pixels).features
            captions_loss = self._captions_loss(image_tokens, tokens) if tokens.shape[1] else 0.0
        seen = image_tokens[rows, places]
        concept_loss = F.cross_entropy(self.concept_classifier(seen).float(), concepts)
        return captions_loss + concept_loss + F.cross_entropy(self.tone_classifier(seen).float(), tones)

    def _captions_loss(self, image_tokens: Tensor, tokens: Tensor) -> Tensor:
        """Mean over all tokens; the shorter and the longer captions are decoded apart, since padding takes time."""
        lengths = (tokens != PADDING).sum(1)
        losses = []
        for rows in lengths.argsort().chunk(2):
            ids = tokens[rows, : int(lengths[rows].max())]
            cross = self.trained_model.project_image(image_tokens[rows])
            past = self.trained_model.empty_cache(len(ids), cross[0].key.dtype)
            logits = self.trained_model.decode(ids[:, :-1], past, cross)[0].flatten(0, 1)
            targets = ids[:, 1:].flatten()
            is_token = targets != PADDING
            losses.append(F.cross_entropy(logits[is_token].float(), targets[is_token], reduction="sum"))
        return torch.stack(losses).sum() / (lengths - 1).sum()

    def _tokens(self, samples: list[CaptionedImage]) -> Tensor:
        ids = [[START, *self.tokenizer.encode(sample.caption).ids, END] for sample in samples]
        length = max(map(len, ids))
        return torch.tensor([row + [PADDING] * (length - len(row)) for row in ids])

    def _things(self, samples: list[CaptionedImage]) -> Tensor:
        stride_px = 1 << len(self._recipe.channels)
        per_side = self._recipe.image_size_px // stride_px
        rows = []
        for row, sample in enumerate(samples):
            for thing in sample.things:
                x, y = (min(int(centre // stride_px), per_side - 1) for centre in thing.centre_px)
                rows.append((row, y * per_side + x, thing.concept, thing.tone))
        return torch.tensor(rows)

    def report(self) -> dict[str, Any]:
        """Metrics of every test split, beside those of the nearest training image."""
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
