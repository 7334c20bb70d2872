"""What our two checkpoint families share: the image encoder, preprocessing and tokenizer of a checkpoint."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from xattn_edge.attention import KeyValue
from xattn_edge.models import CaptionModel, Checkpoint, VqaModel
from xattn_export.families.base import Role, TensorSpec
from xattn_runtime._reading import ObjectReader
from xattn_runtime.contract import cross_names
from xattn_runtime.errors import BundleError, CheckpointError
from xattn_runtime.manifest import Task
from xattn_runtime.preprocess.steps import Step, parse_steps

__all__ = ["flatten", "image_encoder_role", "image_steps", "is_checkpoint", "pairs", "unknown_token_id"]


class ImageEncoderGraph(nn.Module):
    """Picture `[batch, 3, side, side]` to the cross keys and values of every layer."""

    def __init__(self, model: CaptionModel | VqaModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, pixel_values: Tensor) -> tuple[Tensor, ...]:
        return flatten(self.model.encode_image(pixel_values))


def is_checkpoint(config: Mapping[str, Any], task: Task) -> bool:
    """Whether `config` is that of a checkpoint of ours for `task`."""
    return "format_version" in config and config.get("task") == task


def flatten(context: Sequence[KeyValue]) -> tuple[Tensor, ...]:
    """`key_0`, `value_0`, `key_1`, …"""
    return tuple(chain.from_iterable(context))


def pairs(tensors: Sequence[Tensor]) -> list[KeyValue]:
    """The inverse of `flatten`."""
    return [KeyValue(*pair) for pair in zip(tensors[::2], tensors[1::2], strict=True)]


def image_encoder_role(model: CaptionModel | VqaModel, layers: int) -> Role:
    """The role `image_encoder` of a model with `layers` cross-attention layers."""
    side = model.config.image_size_px
    return Role(
        name="image_encoder",
        module=ImageEncoderGraph(model),
        reference=lambda pixel_values: flatten(model.encode_image(pixel_values)),
        inputs=(TensorSpec("pixel_values", ("batch", 3, side, side), "normal"),),
        outputs=tuple(cross_names(layers)),
        attends=model.config.image_layers > 0,
    )


def image_steps(checkpoint: Checkpoint) -> tuple[Step, ...]:
    """The checkpoint's image preprocessing, checked."""
    file = str(checkpoint.path / "config.json")
    try:
        return parse_steps([ObjectReader(dict(step), file) for step in checkpoint.image_preprocessing], file)
    except (BundleError, TypeError, ValueError) as error:
        raise CheckpointError(f"{file}: image_preprocessing: {error}") from error


def unknown_token_id(checkpoint: Checkpoint) -> int:
    """The id of the tokenizer's unknown token."""
    path = Path(checkpoint.path) / "tokenizer.json"
    try:
        model = json.loads(checkpoint.tokenizer_json)["model"]
        return int(model["vocab"][model["unk_token"]])
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(
            f"{path}: expected a tokenizer with an unknown token, found: {type(error).__name__} {error}"
        ) from error
