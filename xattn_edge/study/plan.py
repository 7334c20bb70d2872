"""What a study compares, and the budget that all that it compares have in common."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Literal, TypeVar, get_args

import torch
from torch import nn

from xattn_edge.attention.mechanisms import MECHANISMS
from xattn_edge.attention.similarity import SIMILARITIES
from xattn_edge.attention.weighting import WEIGHTINGS
from xattn_edge.fusion import FUSIONS
from xattn_edge.training import Combination
from xattn_edge.training.recipes import Recipe
from xattn_edge.training.table import TRAININGS
from xattn_runtime.errors import UserError

__all__ = ["KINDS", "TASKS", "StudyPlan", "TaskName", "described", "widest"]

TaskName = Literal["vqa", "sentiment"]
TASKS: tuple[TaskName, ...] = get_args(TaskName)
Which = Literal["all", "axes"]

# `dot` is `scaled_dot` times a constant, which training makes up for.
_NOT_STUDIED = ("dot",)


def _kinds() -> tuple[Combination, ...]:
    first, *mechanisms = (Combination(mechanism=name, layers=1) for name in MECHANISMS)
    return (
        first,
        *(replace(first, weighting=name) for name in WEIGHTINGS if name != first.weighting),
        *(replace(first, similarity=name) for name in SIMILARITIES if name not in (first.similarity, *_NOT_STUDIED)),
        *mechanisms,
    )


KINDS = _kinds()
"""Every mechanism, the first of them also with each other weighting and similarity."""

_PARAMETERS = {"vqa": 70_000, "sentiment": 250_000}
_SIZES: dict[TaskName, dict[str, Any]] = {
    "vqa": {"image_size_px": 32, "channels": (16, 32), "blocks": (1,)},
    "sentiment": {"dropout": 0.2, "learning_rate": 2e-3},
}
_WIDTH_STEP, _MOST_WIDTH = 4, 256


@dataclass(frozen=True, kw_only=True)
class StudyPlan:
    """A study.

    tasks: of `TASKS`. seeds: 0, 1, … . steps: of every training. which: `all` mechanisms with all fusions, or along
        both `axes`: each mechanism with the first fusion, and each fusion with the first mechanism.
    batch: samples a step. test_pictures, test_sentences: how much of the test split is evaluated at most.

    Raises:
        UserError: an unknown task, or a number below 1.
    """

    tasks: tuple[TaskName, ...] = TASKS
    seeds: int = 3
    steps: int = 600
    which: Which = "all"
    batch: int = 16
    test_pictures: int = 300
    test_sentences: int = 2000

    def __post_init__(self) -> None:
        if not self.tasks or set(self.tasks) - set(TASKS):
            raise UserError(f"tasks: expected some of {', '.join(TASKS)}, found {', '.join(self.tasks) or 'none'}")
        if self.which not in get_args(Which):
            raise UserError(f"combinations: expected one of {', '.join(get_args(Which))}, found {self.which!r}")
        for name in ("seeds", "steps", "batch", "test_pictures", "test_sentences"):
            if getattr(self, name) < 1:
                raise UserError(f"{name}: expected at least 1, found {getattr(self, name)}")

    @property
    def combinations(self) -> tuple[Combination, ...]:
        """What is compared."""
        fusions = tuple(FUSIONS)
        if self.which == "all":
            return tuple(replace(kind, fusion=fusion) for kind in KINDS for fusion in fusions)
        return (*KINDS, *(replace(KINDS[0], fusion=fusion) for fusion in fusions if fusion != KINDS[0].fusion))

    def parameters(self, task: str) -> int:
        """The most that a model of `task` may have."""
        return _PARAMETERS[task]

    def recipe(self, task: TaskName) -> Recipe:
        """Of a small model, whatever its mechanism and fusion; its width is the widest within the budget."""
        size: dict[str, Any] = {"steps": self.steps, "batch": self.batch, "warmup_steps": 50, "layers": 1}
        return replace(TRAININGS[task].recipe, **size, **_SIZES[task])

    def budget(self) -> dict[str, object]:
        """What must be alike for results to stand beside each other."""
        return {name: getattr(self, name) for name in ("steps", "batch", "test_pictures", "test_sentences")} | {
            "parameters": {task: self.parameters(task) for task in TASKS}
        }


def described(combination: Combination) -> str:
    """The mechanism of a combination, with what of its attention is not as usual."""
    parts = [combination.mechanism]
    parts += [combination.weighting] * (combination.weighting != "soft")
    parts += [combination.similarity] * (combination.similarity != "scaled_dot")
    return ", ".join(parts)


_Config = TypeVar("_Config")


def widest(make: Callable[[int], _Config], build: Callable[[_Config], nn.Module], most: int) -> tuple[_Config, int]:
    """The configuration of the widest model of at most so many parameters, and how many it has.

    Raises:
        ValueError: parts that do not go together, or a budget that not even the narrowest keeps.
    """
    best = None
    low, high = 1, _MOST_WIDTH // _WIDTH_STEP
    while low <= high:
        middle = (low + high) // 2
        config = make(middle * _WIDTH_STEP)
        with torch.device("meta"):
            count = sum(parameter.numel() for parameter in build(config).parameters())
        if count <= most:
            best, low = (config, count), middle + 1
        else:
            high = middle - 1
    if best is None:
        raise ValueError(f"parameters: expected a budget for a width of {_WIDTH_STEP}, found {most}")
    return best
