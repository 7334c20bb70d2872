"""The two tasks of a study: their data, made once, and how good a model of a combination becomes on it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Protocol

import torch

from xattn_edge.data.rated_sentences import LABELS, RatedSentences, Sentence
from xattn_edge.evaluation.sentiment import PARTS, label_scores, part_sentences
from xattn_edge.models import Checkpoint, Model, SentimentConfig, SentimentModel, VqaConfig, VqaModel, save_checkpoint
from xattn_edge.study.plan import StudyPlan, TaskName, widest
from xattn_edge.training import Combination
from xattn_edge.training.combination import vqa_config
from xattn_edge.training.loop import Batch, fit_in_memory
from xattn_edge.training.pixels import image_preprocessing
from xattn_edge.training.recipes import Recipe
from xattn_edge.training.sentiment import SentimentTraining
from xattn_edge.training.table import Training
from xattn_edge.training.vqa import VqaTraining
from xattn_runtime.loader import load
from xattn_runtime.tasks.sentiment import Utterance

__all__ = ["Subject", "make_subject"]

_LICENSE = "Apache-2.0"
_QUESTIONS_PER_BATCH = 256
_PART = next(part for part in PARTS if part.name == "spoken films/text+speech+frames")

OnStep = Callable[[int, float], None]


class Subject(Protocol):
    """A task of a study."""

    floor: float
    """Percent that are right without the image: from the question alone, or by the commonest label."""
    tested: int
    """How many samples accuracy is of."""

    def take(self, combination: Combination, seed: int) -> tuple[int, int]:
        """Begin with a model of this combination; its width and its parameters. ValueError where it is forbidden."""

    def fit(self, seed: int, on_step: OnStep) -> None:
        """Train it for the steps of the plan."""

    def accuracy(self) -> float:
        """Percent of the test samples that it answers rightly."""

    def save(self, folder: Path) -> None:
        """Write it as a checkpoint."""

    def call(self, bundle: Path, threads: int) -> Callable[[], object]:
        """What a device does once, of one test sample, with a bundle of such a model."""


def make_subject(task: TaskName, plan: StudyPlan) -> Subject:
    """The task, with its data; raises what reading that raises."""
    subjects: dict[TaskName, Callable[[StudyPlan], Subject]] = {"vqa": _VqaSubject, "sentiment": _SentimentSubject}
    return subjects[task](plan)


class _BatchesOfSeed:
    """Those of one seed, made once for all combinations."""

    def __init__(self) -> None:
        self._seed: int | None = None
        self._made: list[Batch] = []

    def of(self, seed: int, steps: int, make: Callable[[int], Batch]) -> list[Batch]:
        if self._seed != seed:
            self._made = [make(step) for step in range(steps)]
            self._seed = seed
        return self._made


class _VqaSubject:
    def __init__(self, plan: StudyPlan) -> None:
        from xattn_edge.evaluation.floors import question_only_accuracy

        self._plan, self._recipe = plan, plan.recipe("vqa")
        self._task = VqaTraining(self._recipe, 0, "lstm", Combination())
        self._test = self._task.test_questions(plan.test_pictures)
        self._batches = _BatchesOfSeed()
        training, test = self._task.samples()
        self.floor, self._sample = question_only_accuracy(training, test), test[0]
        self.tested = len(self._test[-1])

    def take(self, combination: Combination, seed: int) -> tuple[int, int]:
        vocabulary, answers = self._task.tokenizer.get_vocab_size(), self._task.config.answers

        def make(width: int) -> VqaConfig:
            return vqa_config(replace(self._recipe, width=width), vocabulary, answers, combination=combination)

        config, count = widest(make, VqaModel, self._plan.parameters("vqa"))
        torch.manual_seed(seed)
        self._task.begin(config, seed)
        return config.width, count

    def fit(self, seed: int, on_step: OnStep) -> None:
        batches = self._batches.of(seed, self._recipe.steps, self._task.batch)
        fit_in_memory(self._task, self._recipe, batches, on_step)

    @torch.inference_mode()
    def accuracy(self) -> float:
        model = self._task.model
        pixels, input_ids, mask, images, answers = self._test
        encoded = model.encode_image(pixels)
        right = 0
        for start in range(0, len(answers), _QUESTIONS_PER_BATCH):
            rows = slice(start, start + _QUESTIONS_PER_BATCH)
            image = [each[images[rows]] for each in encoded]
            best = model.answer(input_ids[rows], mask[rows], image).argmax(1)
            right += int((best == answers[rows]).sum())
        return 100 * right / len(answers)

    def save(self, folder: Path) -> None:
        save_checkpoint(_checkpoint(folder, "vqa", self._task, self._recipe))

    def call(self, bundle: Path, threads: int) -> Callable[[], object]:
        task = load(bundle, threads=threads, task="vqa")
        return lambda: task.ask(self._sample.image, self._sample.question)


class _SentimentSubject:
    def __init__(self, plan: StudyPlan) -> None:
        self._plan, self._recipe = plan, plan.recipe("sentiment")
        self._task = SentimentTraining(self._recipe, 0)
        self._data = RatedSentences()
        self._rows = _spread(part_sentences(self._data, _PART), plan.test_sentences)
        self._labels = [row.label for row in self._rows]
        self._test = list(self._task.inputs(self._rows, _PART))
        self._batches = _BatchesOfSeed()
        self.floor = 100 * label_scores(self._labels, self._labels)["commonest_label"]
        self.tested = len(self._rows)

    def take(self, combination: Combination, seed: int) -> tuple[int, int]:
        heads, first = self._recipe.heads, self._task.config

        def make(width: int) -> SentimentConfig:
            return replace(
                first,
                width=width,
                mechanism=combination.mechanism_config(heads),
                fusion=combination.fusion_config(modalities=3),
            )

        config, count = widest(make, SentimentModel, self._plan.parameters("sentiment"))
        torch.manual_seed(seed)
        self._task.begin(config, seed)
        return config.width, count

    def fit(self, seed: int, on_step: OnStep) -> None:
        batches = self._batches.of(seed, self._recipe.steps, self._task.batch)
        fit_in_memory(self._task, self._recipe, batches, on_step)

    @torch.inference_mode()
    def accuracy(self) -> float:
        labels = [LABELS[index] for inputs in self._test for index in self._task.model(*inputs).argmax(1).tolist()]
        return 100 * label_scores(labels, self._labels)["accuracy"]

    def save(self, folder: Path) -> None:
        save_checkpoint(_checkpoint(folder, "sentiment", self._task, self._recipe))

    def call(self, bundle: Path, threads: int) -> Callable[[], object]:
        task, row = load(bundle, threads=threads, task="sentiment"), self._rows[0]
        utterance = Utterance(row.text, frames=list(self._data.frames(row)), log_mel=self._data.speech(row))
        return lambda: task.rate_utterance(utterance)


def _spread(rows: list[Sentence], most: int) -> list[Sentence]:
    """At most so many, evenly from the whole: in their file sentences lie by how they were rated."""
    count = min(most, len(rows))
    return [rows[number * len(rows) // count] for number in range(count)]


def _checkpoint(folder: Path, name: TaskName, task: Training, recipe: Recipe) -> Checkpoint[Model]:
    return Checkpoint(
        path=folder,
        task=name,
        name=folder.name,
        license=_LICENSE,
        config=task.config,
        model=task.trained_model.eval(),
        tokenizer_json=task.tokenizer.to_str(),
        image_preprocessing=image_preprocessing(recipe.image_size_px),
        recipe={"data": recipe.data, "steps": recipe.steps, "batch": recipe.batch, **task.recorded},
    )
