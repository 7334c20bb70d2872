"""The trainings by task: one row each, with its recipe and the choices that it offers.

A new training is a class that is a `Training`, a recipe, and a row here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from types import MappingProxyType
from typing import Any, Protocol

from tokenizers import Tokenizer

from xattn_edge.models import Model, ModelConfig
from xattn_edge.training.caption import CaptionTraining
from xattn_edge.training.combination import Combination
from xattn_edge.training.loop import Trainable
from xattn_edge.training.recipes import EMOJI_CAPTION, EMOJI_RETRIEVAL, SENTIMENT, SHAPES_VQA, Recipe
from xattn_edge.training.retrieval import RetrievalTraining
from xattn_edge.training.sentiment import SentimentTraining
from xattn_edge.training.vqa import VqaTraining
from xattn_runtime.errors import UserError

__all__ = ["TRAININGS", "Choices", "Training", "TrainingKind"]


class Training(Trainable, Protocol):
    """What is trained, with its data, and what becomes the checkpoint."""

    @property
    def config(self) -> ModelConfig:
        """Of the model."""

    @property
    def trained_model(self) -> Model:
        """What goes into the checkpoint; `model` may have parts that serve the training alone."""

    @property
    def tokenizer(self) -> Tokenizer:
        """Of its texts."""

    @property
    def recorded(self) -> dict[str, Any]:
        """What the checkpoint says of its preprocessing beside that of the images."""

    def report(self) -> dict[str, Any]:
        """How good the model is on the held-out split."""


@dataclass(frozen=True, kw_only=True)
class Choices:
    """What a training can be asked for beside its recipe; None for what the recipe has.

    text_encoder: `lstm` or `transformer`.
    combination: mechanism and fusion of the model.
    eye: a checkpoint of captioning whose image encoder training begins with.
    """

    text_encoder: str | None = None
    combination: Combination | None = None
    eye: Path | None = None


_REFUSED: Mapping[str, str] = MappingProxyType(
    {
        "text_encoder": "has no text encoder; leave --text-encoder out",
        "combination": "has a mechanism of its own; leave --mechanism and its like out",
        "eye": "begins with random weights; leave --eye out",
    }
)
"""Choice → what is said of a task that does not offer it."""


@dataclass(frozen=True, kw_only=True)
class TrainingKind:
    """A row of `TRAININGS`.

    task: its name.
    recipe: what is trained, on what, for how long.
    begin: the training of a recipe, a seed, and choices.
    offers: the names of the `Choices` that it knows.
    """

    task: str
    recipe: Recipe
    begin: Callable[[Recipe, int, Choices], Training]
    offers: frozenset[str] = frozenset()

    def check(self, choices: Choices) -> None:
        """Check that it offers what was chosen.

        Raises:
            UserError: it does not; names the option.
        """
        for name in (field.name for field in fields(choices)):
            if getattr(choices, name) is not None and name not in self.offers:
                raise UserError(f"the task {self.task!r} {_REFUSED[name]}")


_ROWS = (
    TrainingKind(
        task="vqa",
        recipe=SHAPES_VQA,
        begin=lambda recipe, seed, choices: VqaTraining(
            recipe, seed, choices.text_encoder or "lstm", choices.combination
        ),
        offers=frozenset({"text_encoder", "combination"}),
    ),
    TrainingKind(
        task="caption",
        recipe=EMOJI_CAPTION,
        begin=lambda recipe, seed, choices: CaptionTraining(recipe, seed, choices.combination),
        offers=frozenset({"combination"}),
    ),
    TrainingKind(
        task="retrieval",
        recipe=EMOJI_RETRIEVAL,
        begin=lambda recipe, seed, choices: RetrievalTraining(recipe, seed, choices.eye),
        offers=frozenset({"eye"}),
    ),
    TrainingKind(
        task="sentiment", recipe=SENTIMENT, begin=lambda recipe, seed, choices: SentimentTraining(recipe, seed)
    ),
)
TRAININGS: Mapping[str, TrainingKind] = MappingProxyType({row.task: row for row in _ROWS})
"""Task → training."""
