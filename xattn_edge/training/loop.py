"""The training loop: a pure function of the seed, whatever interrupts it.

Every batch is a function of the seed and the step, and the state on disk holds weights, optimizer moments and the
random generator. So a run that was killed and resumed ends with the very weights of one that was not.
"""

from __future__ import annotations

import gc
import json
import math
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from xattn_edge.training.recipes import Recipe
from xattn_runtime.errors import CheckpointError, OutputError
from xattn_runtime.files import atomic_file

__all__ = ["STATE_FILE", "Batch", "Trainable", "fit", "fit_in_memory"]

STATE_FILE = "training_state.safetensors"
_SAVE_EVERY_SECONDS = 60.0
_MAX_GRADIENT_NORM = 1.0
_ADAM_MOMENTS = ("step", "exp_avg", "exp_avg_sq")

Batch = tuple[Tensor, ...]


class Trainable(Protocol):
    """What the loop needs to know of a training."""

    @property
    def model(self) -> nn.Module:
        """What is trained."""

    def batch(self, step: int) -> Batch:
        """The batch of a step, a function of seed and step alone; runs in a worker process."""

    def loss(self, batch: Batch) -> Tensor:
        """Scalar loss of a batch."""


def fit(
    task: Trainable,
    recipe: Recipe,
    folder: Path,
    identity: dict[str, Any],
    on_step: Callable[[int, float | None], None],
) -> None:
    """Train `task.model` for `recipe.steps` steps, from where the state in `folder` stands.

    Args:
        identity: what the run is (seed, steps, …), compared with the state's before resuming.
        on_step: called after each step with the number of steps done and the loss, and without a loss on resuming.

    Raises:
        OutputError: the state belongs to a run with another identity.
        CheckpointError: the state is damaged.
    """
    optimizer = _optimizer(task, recipe)
    state = folder / STATE_FILE
    done = _restore(state, identity, task.model, optimizer) if state.exists() else 0
    if done:
        on_step(done, None)
    task.model.train()
    saved_at = time.monotonic()
    bfloat16 = _has_fast_bfloat16()
    with _prefetched(task, range(done, recipe.steps)) as batches:
        try:
            for batch in batches:
                loss = _step(task, optimizer, batch, _learning_rate(recipe, done), bfloat16=bfloat16)
                done += 1
                on_step(done, loss)
                if time.monotonic() - saved_at > _SAVE_EVERY_SECONDS:
                    _save(state, identity, done, task.model, optimizer)
                    saved_at = time.monotonic()
        except KeyboardInterrupt:
            _save(state, identity, done, task.model, optimizer)
            raise
    task.model.eval()


def fit_in_memory(
    task: Trainable,
    recipe: Recipe,
    batches: Sequence[Batch],
    on_step: Callable[[int, float], None],
) -> None:
    """Train `task.model` on batches made before, one a step, without anything on disk.

    It computes in float32, which small models are faster in than in bfloat16.
    """
    optimizer = _optimizer(task, recipe)
    task.model.train()
    for done, batch in enumerate(batches):
        loss = _step(task, optimizer, batch, _learning_rate(recipe, done), bfloat16=False)
        on_step(done + 1, loss)
    task.model.eval()


def _optimizer(task: Trainable, recipe: Recipe) -> torch.optim.Optimizer:
    groups = _parameter_groups(task.model, recipe.weight_decay)
    return torch.optim.AdamW(groups, lr=recipe.learning_rate, betas=(0.9, 0.98), fused=True)


def _step(
    task: Trainable, optimizer: torch.optim.Optimizer, batch: Batch, learning_rate: float, *, bfloat16: bool
) -> float:
    for group in optimizer.param_groups:
        group["lr"] = learning_rate
    with torch.autocast("cpu", torch.bfloat16, enabled=bfloat16):
        loss = task.loss(batch)
    optimizer.zero_grad(set_to_none=True)
    loss.backward()  # type: ignore[no-untyped-call]
    nn.utils.clip_grad_norm_(task.model.parameters(), _MAX_GRADIENT_NORM)
    optimizer.step()
    return loss.item()


def _has_fast_bfloat16() -> bool:
    """Whether this processor multiplies bfloat16 matrices in hardware (AVX512-BF16, AMX, Arm BF16)."""
    return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


def _learning_rate(recipe: Recipe, step: int) -> float:
    """Linear warm-up, then a cosine down to nothing (Loshchilov and Hutter, 2017)."""
    warmup = min(recipe.warmup_steps, max(1, recipe.steps // 10))
    if step < warmup:
        return recipe.learning_rate * (step + 1) / warmup
    share = (step - warmup) / max(1, recipe.steps - warmup)
    return recipe.learning_rate * 0.5 * (1 + math.cos(math.pi * share))


def _parameter_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Matrices and kernels decay; biases, norms and their like do not."""
    parameters = list(model.parameters())
    return [
        {"params": [each for each in parameters if each.dim() > 1], "weight_decay": weight_decay},
        {"params": [each for each in parameters if each.dim() <= 1], "weight_decay": 0.0},
    ]


class _Steps(Dataset[Batch]):
    def __init__(self, task: Trainable, steps: Sequence[int]) -> None:
        self._task, self._steps = task, steps

    def __len__(self) -> int:
        return len(self._steps)

    def __getitem__(self, index: int) -> Batch:
        return self._task.batch(self._steps[index])


def _begin_work(_worker: int) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # Collecting what there was before a fork may end in a library that waits for its threads, which are not there.
    gc.freeze()


@contextmanager
def _prefetched(task: Trainable, steps: Sequence[int]) -> Iterator[Iterator[Batch]]:
    """Batches prefetched by one worker process, so that drawing and learning overlap."""
    loader = DataLoader(
        _Steps(task, steps),
        batch_size=None,
        num_workers=1,
        prefetch_factor=8,
        worker_init_fn=_begin_work,
        multiprocessing_context="fork" if hasattr(signal, "SIGCHLD") else None,
    )
    # A generator of its own: the loader otherwise draws from the global one, once for each resumption.
    loader.generator = torch.Generator()
    batches = iter(loader)
    try:
        yield batches
    finally:
        del batches


def _save(path: Path, identity: dict[str, Any], done: int, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    tensors = {f"model.{name}": tensor for name, tensor in model.state_dict().items()}
    for number, moments in optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer.{number}.{name}": moments[name] for name in _ADAM_MOMENTS}
    tensors["random"] = torch.get_rng_state()
    metadata = {"identity": json.dumps(identity, sort_keys=True), "done": str(done)}
    with atomic_file(path) as temporary:
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, temporary, metadata)


def _restore(path: Path, identity: dict[str, Any], model: nn.Module, optimizer: torch.optim.Optimizer) -> int:
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata()
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        recorded, done = json.loads(metadata["identity"]), int(metadata["done"])
    except (SafetensorError, KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"{path}: damaged ({error}); start anew with --overwrite") from error
    if recorded != json.loads(json.dumps(identity)):
        changed = [
            f"{key} {recorded.get(key)!r} there, {identity[key]!r} here"
            for key in identity
            if recorded.get(key) != identity[key]
        ]
        raise OutputError(f"{path.parent}: holds another unfinished training ({'; '.join(changed)}); use --overwrite")
    model.load_state_dict({name.removeprefix("model."): t for name, t in tensors.items() if name.startswith("model.")})
    state: dict[int, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        if name.startswith("optimizer."):
            _, number, moment = name.split(".")
            state.setdefault(int(number), {})[moment] = tensor
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
    _match_memory_format(optimizer)
    torch.set_rng_state(tensors["random"])
    return done


def _match_memory_format(optimizer: torch.optim.Optimizer) -> None:
    """Lay moments out as their parameters are: fused AdamW walks through both in the order of memory."""
    for parameter, moments in optimizer.state.items():
        for name in _ADAM_MOMENTS[1:]:
            moments[name] = torch.empty_like(parameter, requires_grad=False).copy_(moments[name])
