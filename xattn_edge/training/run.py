"""`train`: from a recipe to a checkpoint with its report."""

from __future__ import annotations

import dataclasses
import json
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from xattn_edge.models.checkpoint import Checkpoint, save_checkpoint
from xattn_edge.training.combination import Combination
from xattn_edge.training.loop import STATE_FILE, fit
from xattn_edge.training.pixels import image_preprocessing
from xattn_edge.training.recipes import Recipe
from xattn_edge.training.table import TRAININGS, Choices, Training
from xattn_runtime.brought_files import is_system_file
from xattn_runtime.errors import OutputError, UserError
from xattn_runtime.execution.settings import checked_threads
from xattn_runtime.files import atomic_write, check_writable, is_leftover, sweep

__all__ = ["TrainProgress", "TrainReport", "train"]

_LICENSE = "Apache-2.0"


@dataclass(frozen=True)
class TrainProgress:
    """How far a training is; `loss` is that of the last step, `message` is empty unless something else begins."""

    step: int
    total_steps: int
    loss: float | None
    message: str


@dataclass(frozen=True)
class TrainReport:
    """What `train` made."""

    checkpoint: Path
    task: str
    evaluation: dict[str, Any]

    def to_dict(self) -> dict[str, Any]:
        """JSON form."""
        return {"checkpoint": str(self.checkpoint), "task": self.task, "evaluation": self.evaluation}


def train(
    task: str,
    output: Path,
    *,
    seed: int = 0,
    steps: int | None = None,
    text_encoder: str | None = None,
    combination: Combination | None = None,
    eye: Path | None = None,
    threads: int | None = None,
    overwrite: bool = False,
    progress: Callable[[TrainProgress], None] | None = None,
) -> TrainReport:
    """Train the recipe of `task` into the checkpoint folder `output`; resume an unfinished training there.

    Args:
        task: one of `TRAININGS`.
        seed: of weights, batches and dropout.
        steps: optimizer steps, if not those of the recipe.
        text_encoder: `lstm` (default) or `transformer`, for `vqa` alone.
        combination: mechanism and fusion of the model, for `vqa` and `caption`; without it, the default's layers of
            cross-attention.
        eye: a checkpoint of captioning whose image encoder training begins with, for `retrieval` alone.
        threads: within an operator; by default all cores but one, which makes the batches.
        overwrite: delete what is in `output` first.
        progress: called after every step.

    Raises:
        OutputError: `output` holds something else, or a finished checkpoint.
        UserError: an impossible argument.
    """
    if task not in TRAININGS:
        raise UserError(f"unknown task {task!r}; expected one of {', '.join(TRAININGS)}")
    kind, choices = TRAININGS[task], Choices(text_encoder=text_encoder, combination=combination, eye=eye)
    kind.check(choices)
    if steps is not None and steps < 1:
        raise UserError(f"expected at least one training step, found {steps}")
    recipe = kind.recipe if steps is None else dataclasses.replace(kind.recipe, steps=steps)
    checked_threads(threads)
    _prepare_output(output, overwrite)
    on_progress = progress or (lambda _: None)
    on_progress(TrainProgress(0, recipe.steps, None, "reading the data"))
    torch.set_num_threads(threads or max(1, torch.get_num_threads() - 1))
    torch.manual_seed(seed)
    if combination is not None:
        recipe = dataclasses.replace(recipe, name=f"{recipe.name}-{combination.label()}", layers=combination.layers)
    return _run(task, kind.begin(recipe, seed, choices), recipe, output, seed, on_progress)


def _run(
    name: str,
    task: Training,
    recipe: Recipe,
    output: Path,
    seed: int,
    progress: Callable[[TrainProgress], None],
) -> TrainReport:
    identity = {"task": name, "seed": seed, **dataclasses.asdict(recipe), "config": dataclasses.asdict(task.config)}
    started, earlier = time.monotonic(), _seconds_so_far(output)

    def on_step(done: int, loss: float | None) -> None:
        progress(TrainProgress(done, recipe.steps, loss, "" if loss is not None else f"resuming after step {done}"))

    try:
        fit(task, recipe, output, identity, on_step)
    finally:
        seconds = earlier + time.monotonic() - started
        atomic_write(output / _SECONDS_FILE, json.dumps(seconds))
    progress(TrainProgress(recipe.steps, recipe.steps, None, "evaluating on the held-out split"))
    evaluation = {**task.report(), "data": recipe.data, "training_seconds": round(seconds, 1)}
    atomic_write(output / "report.json", json.dumps(evaluation, indent=2) + "\n")
    save_checkpoint(
        Checkpoint(
            path=output,
            task=name,
            name=recipe.name,
            license=_LICENSE,
            config=task.config,
            model=task.trained_model,
            tokenizer_json=task.tokenizer.to_str(pretty=True),
            image_preprocessing=image_preprocessing(recipe.image_size_px),
            recipe={
                "seed": seed,
                "data": recipe.data,
                "steps": recipe.steps,
                "batch": recipe.batch,
                "learning_rate": recipe.learning_rate,
                "weight_decay": recipe.weight_decay,
                "torch": torch.__version__,
                **task.recorded,
            },
        )
    )
    for file in (output / STATE_FILE, output / _SECONDS_FILE):
        sweep(file)
        file.unlink(missing_ok=True)
    return TrainReport(output, name, evaluation)


_SECONDS_FILE = "training_seconds.json"


def _seconds_so_far(output: Path) -> float:
    path = output / _SECONDS_FILE
    return float(json.loads(path.read_bytes())) if path.exists() else 0.0


def _prepare_output(output: Path, overwrite: bool) -> None:
    """An empty folder, or one that holds an unfinished training and nothing else."""
    if output.exists() and not output.is_dir():
        raise OutputError(f"{output}: is a file; expected a folder for the checkpoint")
    if overwrite and output.exists():
        if _strangers(output):
            raise OutputError(f"{output}: holds files that are not of a checkpoint; choose another folder")
        shutil.rmtree(output)
    if (output / "config.json").exists():
        raise OutputError(f"{output}: holds a finished checkpoint; choose another folder or use --overwrite")
    output.mkdir(parents=True, exist_ok=True)
    if strangers := _strangers(output):
        raise OutputError(f"{output}: holds {strangers[0]}, which is not of a checkpoint; choose an empty folder")
    check_writable(output / STATE_FILE)


def _strangers(output: Path) -> list[str]:
    """Names in the folder that no training writes; not those of files that a killed one left half written."""
    names = {path.name for path in output.iterdir()} - _CHECKPOINT_FILES
    return sorted(name for name in names if not is_leftover(name) and not is_system_file(name))


_CHECKPOINT_FILES = {
    "config.json",
    "model.safetensors",
    "tokenizer.json",
    "report.json",
    STATE_FILE,
    _SECONDS_FILE,
}
