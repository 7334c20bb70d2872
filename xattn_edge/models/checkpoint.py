"""A trained model on disk: a folder that any version of this library can rebuild the model from.

```
CHECKPOINT/
    config.json          format version, task, name, licence, model configuration, how it was trained
    model.safetensors    weights
    tokenizer.json       of the `tokenizers` library
    report.json          how good it is on the held-out split
```
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar, overload

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from xattn_edge.models.convert import config_of_format_2, tensors_of_format_2
from xattn_edge.models.table import MODELS, Model, ModelConfig, build_model, config_from_dict
from xattn_runtime.brought_files import decoded_text
from xattn_runtime.errors import CheckpointError
from xattn_runtime.files import atomic_file, atomic_write

__all__ = [
    "FORMAT_VERSION",
    "Checkpoint",
    "load_checkpoint",
    "save_checkpoint",
]

FORMAT_VERSION = 2
_CONVERTED_VERSION = 1


_Model = TypeVar("_Model", bound=Model, covariant=True)
_Kind = TypeVar("_Kind", bound=Model)


@dataclass(frozen=True)
class Checkpoint(Generic[_Model]):
    """A loaded checkpoint; the model is in evaluation mode."""

    path: Path
    task: str
    name: str
    license: str
    config: ModelConfig
    model: _Model
    tokenizer_json: str
    image_preprocessing: tuple[Mapping[str, Any], ...]
    recipe: Mapping[str, Any]
    """How it was trained: data, seed, steps, …"""


def save_checkpoint(checkpoint: Checkpoint[Model]) -> None:
    """Write everything but the report to `checkpoint.path`, the configuration last: it marks the folder complete."""
    folder = checkpoint.path
    folder.mkdir(parents=True, exist_ok=True)
    with atomic_file(folder / "model.safetensors") as temporary:
        save_file({name: tensor.contiguous() for name, tensor in checkpoint.model.state_dict().items()}, temporary)
    atomic_write(folder / "tokenizer.json", checkpoint.tokenizer_json)
    config = {
        "format_version": FORMAT_VERSION,
        "task": checkpoint.task,
        "name": checkpoint.name,
        "license": checkpoint.license,
        "model": dataclasses.asdict(checkpoint.config),
        "image_preprocessing": list(checkpoint.image_preprocessing),
        "recipe": dict(checkpoint.recipe),
    }
    atomic_write(folder / "config.json", json.dumps(config, indent=2, ensure_ascii=False) + "\n")


@overload
def load_checkpoint(path: Path, kind: type[_Kind]) -> Checkpoint[_Kind]: ...


@overload
def load_checkpoint(path: Path) -> Checkpoint[Model]: ...


def load_checkpoint(path: Path, kind: type[Any] | None = None) -> Checkpoint[Any]:
    """Rebuild a trained model.

    Args:
        path: of the checkpoint's folder.
        kind: the class that the model must be of, if not any.

    Raises:
        CheckpointError: missing or damaged files, an unknown format, weights that do not fit the configuration, or a
            model of another class than `kind`.
    """
    checkpoint = _load(path)
    if kind is not None and not isinstance(checkpoint.model, kind):
        task = next(task for task, row in MODELS.items() if row.build is kind)
        raise CheckpointError(f"{path}: expected a checkpoint of {task}, found one of {checkpoint.task}")
    return checkpoint


def _load(path: Path) -> Checkpoint[Model]:
    config = _read_json(path / "config.json")
    version = config.get("format_version")
    if version not in (FORMAT_VERSION, _CONVERTED_VERSION):
        raise CheckpointError(
            f"{path / 'config.json'}: format version {version!r}, expected {FORMAT_VERSION} or {_CONVERTED_VERSION}; "
            "train again or use the matching version of xattn-edge"
        )
    try:
        task, values = config["task"], config["model"]
        is_older = version == _CONVERTED_VERSION
        model_config = config_from_dict(task, config_of_format_2(task, values) if is_older else values)
        model = build_model(model_config)
        tensors = load_file(path / "model.safetensors")
        model.load_state_dict(tensors_of_format_2(task, values, tensors) if is_older else tensors)
        return Checkpoint(
            path=path,
            task=task,
            name=config["name"],
            license=config["license"],
            config=model_config,
            model=model.eval(),
            tokenizer_json=decoded_text((path / "tokenizer.json").read_bytes()),
            image_preprocessing=tuple(config["image_preprocessing"]),
            recipe=config["recipe"],
        )
    except FileNotFoundError as error:
        raise CheckpointError(f"{path}: {Path(error.filename or 'model.safetensors').name} is missing") from error
    except (KeyError, TypeError, ValueError, AttributeError, RuntimeError, SafetensorError) as error:
        reason = " ".join(str(error).split())[:300]
        raise CheckpointError(f"{path}: damaged or of another model: {type(error).__name__}: {reason}") from error


def _read_json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise CheckpointError(
            f"{path.parent}: not a checkpoint: it has no {path.name}; make one with `xattn-edge train`"
        )
    try:
        value = json.loads(path.read_bytes())
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise CheckpointError(f"{path}: not JSON: {error}") from error
    if not isinstance(value, dict):
        raise CheckpointError(f"{path}: expected a JSON object, found {type(value).__name__}")
    return value
