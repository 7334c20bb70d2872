"""The models by task: one row each. A configuration, as a frozen dataclass or as JSON, says what a model is made of."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass, is_dataclass
from types import MappingProxyType, UnionType
from typing import Any, cast, get_args, get_type_hints

from xattn_edge.models.caption import CaptionConfig, CaptionModel
from xattn_edge.models.retrieval import RetrievalConfig, RetrievalModel
from xattn_edge.models.sentiment import SentimentConfig, SentimentModel
from xattn_edge.models.vqa import VqaConfig, VqaModel

__all__ = ["MODELS", "Model", "ModelConfig", "ModelKind", "build_model", "config_from_dict"]

ModelConfig = VqaConfig | CaptionConfig | RetrievalConfig | SentimentConfig
Model = VqaModel | CaptionModel | RetrievalModel | SentimentModel


@dataclass(frozen=True)
class ModelKind:
    """A row of `MODELS`: the class of the configuration, and the model of one."""

    config: type[ModelConfig]
    build: Callable[[Any], Model]


MODELS: Mapping[str, ModelKind] = MappingProxyType(
    {
        "vqa": ModelKind(VqaConfig, VqaModel),
        "caption": ModelKind(CaptionConfig, CaptionModel),
        "retrieval": ModelKind(RetrievalConfig, RetrievalModel),
        "sentiment": ModelKind(SentimentConfig, SentimentModel),
    }
)
"""Task → model."""


def build_model(config: ModelConfig) -> Model:
    """A model of this configuration with random weights."""
    build = next(kind.build for kind in MODELS.values() if kind.config is type(config))
    return build(config)


def config_from_dict(task: str, values: Mapping[str, Any]) -> ModelConfig:
    """The configuration of `task` from its JSON form.

    Raises:
        ValueError: an unknown task, a missing, unknown or impossible value.
    """
    if task not in MODELS:
        raise ValueError(f"task: {task!r} is not one of {', '.join(MODELS)}")
    config: ModelConfig = _from_dict(MODELS[task].config, values)
    return config


def _from_dict(kind: type[Any], values: Mapping[str, Any]) -> Any:
    """A frozen dataclass, and those in it, from what `dataclasses.asdict` and JSON made of it."""
    types = get_type_hints(kind)
    names = {field.name for field in dataclasses.fields(kind)}
    if names != set(values):
        raise ValueError(f"missing {sorted(names - set(values))}, unknown {sorted(set(values) - names)}")
    return kind(**{name: _value(types[name], value) for name, value in values.items()})


def _value(kind: Any, value: Any) -> Any:
    if isinstance(value, Mapping):
        options: tuple[Any, ...] = get_args(kind) if isinstance(kind, UnionType) else (kind,)
        frozen = cast(type[Any], next(filter(is_dataclass, options)))
        return _from_dict(frozen, value)
    return tuple(value) if isinstance(value, list) else value
