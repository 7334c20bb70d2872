"""A decoder's role with its cache in two parts: what the graph of `decompose/split_cache.py` must compute."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from xattn_export.families.base.roles import Role, Symbol, TensorSpec

__all__ = ["can_split", "split_role"]

_PAST, _FROZEN = "past_", "frozen_"
_CACHED, _GIVEN = ("past_key_", "past_value_"), ("present_key_", "present_value_")


def can_split(role: Role) -> bool:
    """Whether it is a decoder whose cache begins with no image's keys and values."""
    return role.name == "decoder" and not role.prefix


def split_role(role: Role) -> Role:
    """`role`, a decoder, with `frozen_key_N` and `frozen_value_N` before the past, and all keys transposed.

    The reference puts the two parts of the cache together, and gives of the longer cache what is not frozen.
    """
    past = [spec for spec in role.inputs if spec.name.startswith(_CACHED)]
    first = role.inputs.index(past[0])
    frozen = [replace(_turned(spec), name=_name_of_frozen(spec), shape=_frozen_shape(spec)) for spec in past]
    others = [_turned(spec) if spec in past else spec for spec in role.inputs]
    inputs = (*others[:first], *frozen, *others[first:])
    names = [spec.name for spec in inputs]

    def reference(*tensors: Tensor) -> tuple[Tensor, ...]:
        fed = dict(zip(names, tensors, strict=True))
        outputs = role.reference(*(_whole(spec, fed) for spec in role.inputs))
        count = fed[_name_of_frozen(past[-1])].shape[2]
        return tuple(_recent(name, each, count) for name, each in zip(role.outputs, outputs, strict=True))

    attends = role.attends and any(spec.name.startswith("cross_") for spec in role.inputs)
    return replace(role, reference=reference, inputs=inputs, attends=attends, traced=role)


def _name_of_frozen(past: TensorSpec) -> str:
    return _FROZEN + past.name.removeprefix(_PAST)


def _frozen_shape(past: TensorSpec) -> tuple[int | Symbol, ...]:
    others: dict[int | Symbol, Symbol] = {"past": "frozen", "batch": "rows"}
    return tuple(others.get(axis, axis) for axis in _turned(past).shape)


def _turned(spec: TensorSpec) -> TensorSpec:
    """With the last two axes of a key swapped."""
    *outer, tokens, width = spec.shape
    return replace(spec, shape=(*outer, width, tokens)) if "_key_" in spec.name else spec


def _whole(spec: TensorSpec, fed: dict[str, Tensor]) -> Tensor:
    if not spec.name.startswith(_CACHED):
        return fed[spec.name]
    is_key = "_key_" in spec.name
    whole = torch.cat((fed[_name_of_frozen(spec)], fed[spec.name]), 3 if is_key else 2)
    return whole.transpose(2, 3) if is_key else whole


def _recent(name: str, output: Tensor, frozen: int) -> Tensor:
    if not name.startswith(_GIVEN):
        return output
    recent = output[:, :, frozen:]
    return (recent.transpose(2, 3) if "_key_" in name else recent).contiguous()
