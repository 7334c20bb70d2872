"""Training sentiment on rated sentences, some of them spoken, with drawn frames beside some."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from typing import Any

import numpy as np
import torch
from numpy.random import Generator
from tokenizers import Tokenizer
from torch import Tensor
from torch.nn import functional as F

from xattn_edge.attention import AttentionOptions, MechanismConfig
from xattn_edge.data.faces import FRAMES, SIDE_PX
from xattn_edge.data.rated_sentences import LABELS, SPEECH, RatedSentences, Sentence
from xattn_edge.data.vocabulary import PADDING, UNKNOWN, piece_tokenizer
from xattn_edge.encoders import SpeechEncoderConfig, TextEncoderConfig, VideoEncoderConfig
from xattn_edge.evaluation.sentiment import PARTS, Part, label_scores, part_sentences
from xattn_edge.fusion import FusionConfig
from xattn_edge.models import SentimentConfig, SentimentModel
from xattn_edge.training.pixels import normalized
from xattn_edge.training.recipes import Recipe

__all__ = ["SentimentTraining"]

_PIECES = 6000
_SPEECH_CHANNELS = 16
_TEXT_LAYERS = 1
_FILMS_SHARE = 0.6
_LEXICON_SHARE = 0.15
_SPOKEN_EVERY, _SEEN_EVERY = 12, 4
_TEXT_LEFT_OUT, _SPEECH_LEFT_OUT, _FRAMES_LEFT_OUT = 0.4, 0.2, 0.4
_UNKNOWN_SHARE = 0.25
# On the scale of ratings: how far from an edge of a label a mean of twenty ratings is sure of it.
_EDGE, _SURE = 0.2, 0.35
# Of the embeddings, before training.
_FIRST_SIZE, _COUNTED_SIZE, _COUNTED_FEATURES = 0.05, 0.3, 8
_BATCH = 128


class SentimentTraining:
    """Batches of sentences and of single words of the lexicon, with the modalities that each happens to have.

    Every twelfth batch is spoken, every fourth has faces, and in those words, sound and faces are often left out. The
    targets say how sure the raters' mean is of each label.
    """

    def __init__(self, recipe: Recipe, seed: int) -> None:
        self._data = RatedSentences()
        self._recipe, self._seed = recipe, seed
        self._train = self._data.split("train")
        self._films = [each for each in self._train if each.domain == "films"]
        self._spoken = [each for each in self._train if each.spoken is not None]
        self._words = sorted(self._data.lexicon.items())
        texts = [each.text for each in self._train]
        self.tokenizer: Tokenizer = piece_tokenizer([*texts, *self._data.lexicon], _PIECES)
        self.config = SentimentConfig(
            text=TextEncoderConfig(
                name="transformer",
                vocabulary=self.tokenizer.get_vocab_size(),
                max_tokens=recipe.max_tokens,
                layers=_TEXT_LAYERS,
                heads=recipe.heads,
            ),
            speech=SpeechEncoderConfig(
                bands=SPEECH.bands, longest=SPEECH.longest_frames, channels=_SPEECH_CHANNELS, heads=recipe.heads
            ),
            frames=VideoEncoderConfig(
                image=replace(recipe.image_encoder(), heads=1),
                longest=FRAMES,
                heads=recipe.heads,
            ),
            mechanism=MechanismConfig(name="text_to_image", options=AttentionOptions(heads=recipe.heads)),
            fusion=FusionConfig(name="adaptive"),
            layers=recipe.layers,
            width=recipe.width,
            dropout=recipe.dropout,
            labels=LABELS,
        )
        self.trained_model = self.model = SentimentModel(self.config)
        self._begin_with_counts()

    def begin(self, config: SentimentConfig, seed: int) -> None:
        """Begin anew with a model of this configuration, random weights, and other batches."""
        self.config, self._seed = config, seed
        self.trained_model = self.model = SentimentModel(config)
        self._begin_with_counts()

    def _begin_with_counts(self) -> None:
        """Let some features of each piece begin with how much oftener it is in well rated than in ill rated texts.

        It is the log-count ratio of naive Bayes (Wang and Manning, 2012), of the training half and of the lexicon; the
        other features begin near 0. A few thousand sentences are too few to learn every word from random numbers.
        """
        counts = np.ones((2, self.config.text.vocabulary))
        for sentence in self._train:
            share = 1 / (1 + np.exp(-sentence.rating / _SURE))
            for piece in set(self.tokenizer.encode(sentence.text).ids):
                counts[:, piece] += share, 1 - share
        ratios = np.log(counts / counts.sum(1, keepdims=True))
        ratios = ratios[0] - ratios[1]
        for word, rating in self._words:
            ids = self.tokenizer.encode(word).ids
            if len(ids) == 1:
                ratios[ids[0]] += rating / 4
        signs = torch.tensor([1.0, -1.0]).repeat(_COUNTED_FEATURES // 2)
        with torch.no_grad():
            table = self.trained_model.text_encoder.embedding.weight.mul_(_FIRST_SIZE)
            table[:, :_COUNTED_FEATURES] = _COUNTED_SIZE * torch.tensor(ratios).float()[:, None] * signs

    @property
    def recorded(self) -> dict[str, Any]:
        """What the checkpoint says of its preprocessing beside that of the images: how speech is cut."""
        return {"speech": asdict(SPEECH)}

    def batch(self, step: int) -> tuple[Tensor, ...]:
        """The six inputs of the model, and target probabilities `[batch, labels]`."""
        rng = np.random.default_rng((self._seed, step))
        count = self._recipe.batch
        if step % _SPOKEN_EVERY == 0:
            rows = [self._spoken[index] for index in rng.integers(0, len(self._spoken), count)]
            heard = rng.random(count) >= _SPEECH_LEFT_OUT
        else:
            rows = [self._any_sentence(rng) for _ in range(count)]
            heard = np.zeros(count, dtype=bool)
        shown = np.array([row.domain != _LEXICON for row in rows]) & (step % _SEEN_EVERY == 0)
        seen = shown & (rng.random(count) >= _FRAMES_LEFT_OUT)
        read = ~(heard | seen) | (rng.random(count) >= _TEXT_LEFT_OUT)
        ids = [self._ids(row.text, rng) if has else [] for row, has in zip(rows, read, strict=True)]
        inputs = (*_padded_ids(ids), *self._speech(rows, heard), *self._frames(rows, seen))
        return *inputs, _targets(torch.tensor([row.rating for row in rows]))

    def loss(self, batch: tuple[Tensor, ...]) -> Tensor:
        """Cross-entropy of the labels, each as far as it is sure."""
        *inputs, targets = batch
        return F.cross_entropy(self.trained_model(*inputs).float(), targets)

    def report(self) -> dict[str, Any]:
        """Accuracy and F1 of every part of the test half."""
        splits = {part.name: self._scores(part) for part in PARTS}
        films = splits["films/text"]
        return {
            "metric": "accuracy",
            "value": films["accuracy"],
            "n": films["n"],
            "split": "films/text",
            "splits": splits,
        }

    def _scores(self, part: Part) -> dict[str, float]:
        rows = part_sentences(self._data, part)
        return label_scores([LABELS[index] for index in self._predict(rows, part)], [row.label for row in rows])

    @torch.inference_mode()
    def _predict(self, rows: Sequence[Sentence], part: Part) -> Iterator[int]:
        for inputs in self.inputs(rows, part):
            yield from self.trained_model(*inputs).argmax(1).tolist()

    def inputs(self, rows: Sequence[Sentence], part: Part) -> Iterator[tuple[Tensor, ...]]:
        """The six inputs of the model for the sentences of a part, some hundred at a time."""
        for start in range(0, len(rows), _BATCH):
            some = rows[start : start + _BATCH]
            every = {kind: np.full(len(some), kind in part.modalities) for kind in ("text", "speech", "frames")}
            ids = [self._ids(row.text) if "text" in part.modalities else [] for row in some]
            yield *_padded_ids(ids), *self._speech(some, every["speech"]), *self._frames(some, every["frames"])

    def _any_sentence(self, rng: Generator) -> Sentence:
        kind = rng.random()
        if kind < _LEXICON_SHARE:
            word, rating = self._words[rng.integers(len(self._words))]
            return Sentence(_LEXICON, word, word, rating, "train")
        rows = self._films if kind < _LEXICON_SHARE + _FILMS_SHARE * (1 - _LEXICON_SHARE) else self._train
        return rows[rng.integers(len(rows))]

    def _ids(self, text: str, rng: Generator | None = None) -> list[int]:
        """Token ids; with `rng` some of a longer text are made unknown."""
        ids: list[int] = self.tokenizer.encode(text).ids[: self._recipe.max_tokens]
        if rng is None or len(ids) < 4:
            return ids
        return [
            UNKNOWN if hidden else each for each, hidden in zip(ids, rng.random(len(ids)) < _UNKNOWN_SHARE, strict=True)
        ]

    def _speech(self, rows: Sequence[Sentence], heard: np.typing.NDArray[np.bool_]) -> tuple[Tensor, Tensor]:
        clips = [self._data.speech(row) if has else None for row, has in zip(rows, heard, strict=True)]
        longest = max([1, *(len(clip) for clip in clips if clip is not None)])
        values, mask = torch.zeros(len(rows), longest, SPEECH.bands), torch.zeros(len(rows), longest, dtype=torch.int64)
        for row, clip in enumerate(clips):
            if clip is not None:
                values[row, : len(clip)], mask[row, : len(clip)] = torch.from_numpy(clip), 1
        return values, mask

    def _frames(self, rows: Sequence[Sentence], seen: np.typing.NDArray[np.bool_]) -> tuple[Tensor, Tensor]:
        length = FRAMES if seen.any() else 1
        values, mask = torch.zeros(len(rows), length, 3, SIDE_PX, SIDE_PX), torch.zeros(len(rows), length).long()
        for row in np.flatnonzero(seen):
            values[row], mask[row] = normalized(self._data.frames(rows[int(row)])), 1
        return values, mask


_LEXICON = "lexicon"


def _padded_ids(ids: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
    length = max(1, *map(len, ids))
    padded = torch.tensor([[*row, *[PADDING] * (length - len(row))] for row in ids])
    mask = torch.tensor([[1] * len(row) + [0] * (length - len(row)) for row in ids])
    return padded, mask


def _targets(ratings: Tensor) -> Tensor:
    """How sure a mean rating is of each of `LABELS`, `[batch, labels]`."""
    positive, negative = ((sign * ratings - _EDGE) / _SURE for sign in (1, -1))
    above, below = positive.sigmoid(), negative.sigmoid()
    return torch.stack([below, 1 - above - below, above], 1)
