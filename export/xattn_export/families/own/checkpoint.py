"""What our two checkpoint families share: the image encoder, preprocessing and tokenizer of a checkpoint."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any, cast

from torch import Tensor, nn

from xattn_edge.attention import KeyValue, MultiHeadAttention
from xattn_edge.encoders import ImageEncoder
from xattn_edge.encoders.transformer import SelfAttentionLayer
from xattn_edge.models import CaptionModel, Checkpoint, VqaModel
from xattn_export.families.base import TOKENIZER_FILE, Role, SourceTokenizer, TensorSpec
from xattn_export.families.layers.common import attend, attend_with_cache, fuse_linears, split_heads
from xattn_runtime.bundle.contract import cross_names
from xattn_runtime.bundle.manifest import Task
from xattn_runtime.errors import BundleError, CheckpointError
from xattn_runtime.json_reader import ObjectReader
from xattn_runtime.preprocess.steps import Step, parse_steps
from xattn_runtime.preprocess.tokenizer import TokenizerSpec

__all__ = [
    "SelfAttentionGraph",
    "flatten",
    "image_encoder_role",
    "image_steps",
    "is_checkpoint",
    "pairs",
    "source_tokenizer",
]


class SelfAttentionGraph(nn.Module):
    """Self-attention of ours with queries, keys and values from one product."""

    def __init__(self, attention: MultiHeadAttention) -> None:
        super().__init__()
        self.heads = attention.heads
        self.project = fuse_linears(attention.query, attention.key, attention.value)
        self.output = attention.output

    def forward(self, normed: Tensor) -> Tensor:
        """`[batch, length, width]`, every token attending to all; the same shape comes out."""
        query, key, value = self.project(normed).chunk(3, -1)
        return cast(Tensor, self.output(attend(query, key, value, self.heads)))

    def with_cache(self, normed: Tensor, past: KeyValue) -> tuple[Tensor, KeyValue]:
        """The same, causal and after `past`; the longer cache comes out too."""
        query, key, value = self.project(normed).chunk(3, -1)
        attended, present = attend_with_cache(query, key, value, past, self.heads)
        return self.output(attended), present


class ImageEncoderGraph(nn.Module):
    """Picture `[batch, 3, side, side]` to the cross keys and values of every layer."""

    def __init__(self, encoder: ImageEncoder, cross: Sequence[MultiHeadAttention]) -> None:
        super().__init__()
        self.encoder = encoder
        self.attentions = nn.ModuleList(
            SelfAttentionGraph(cast(SelfAttentionLayer, layer).attention) for layer in encoder.layers
        )
        self.heads = cross[0].heads
        self.contexts = fuse_linears(*chain.from_iterable((each.key, each.value) for each in cross))
        self.tensors = 2 * len(cross)

    def forward(self, pixel_values: Tensor) -> tuple[Tensor, ...]:
        encoder = self.encoder
        features = encoder.feature_map(pixel_values).flatten(2).transpose(1, 2)
        tokens = encoder.projection(features) + encoder.position
        for module, attention in zip(encoder.layers, self.attentions, strict=True):
            layer = cast(SelfAttentionLayer, module)
            tokens = tokens + attention(layer.attention_norm(tokens))
            tokens = tokens + layer.feed_forward(layer.feed_forward_norm(tokens))
        contexts = self.contexts(encoder.norm(tokens)).chunk(self.tensors, -1)
        return tuple(split_heads(context, self.heads) for context in contexts)


def is_checkpoint(config: Mapping[str, Any], task: Task) -> bool:
    """Whether `config` is that of a checkpoint of ours for `task`."""
    return "format_version" in config and config.get("task") == task


def flatten(context: Sequence[KeyValue]) -> tuple[Tensor, ...]:
    """`key_0`, `value_0`, `key_1`, …"""
    return tuple(chain.from_iterable(context))


def pairs(tensors: Sequence[Tensor]) -> list[KeyValue]:
    """The inverse of `flatten`."""
    return [KeyValue(*pair) for pair in zip(tensors[::2], tensors[1::2], strict=True)]


def image_encoder_role(model: CaptionModel | VqaModel, cross: Sequence[MultiHeadAttention]) -> Role:
    """The role `image_encoder` of a model whose cross-attention, layer by layer, is `cross`."""
    side = model.config.image_size_px
    return Role(
        name="image_encoder",
        module=ImageEncoderGraph(model.image_encoder, cross),
        reference=lambda pixel_values: flatten(model.encode_image(pixel_values)),
        inputs=(TensorSpec("pixel_values", ("batch", 3, side, side), "normal"),),
        outputs=tuple(cross_names(len(cross))),
        attends=model.config.image_layers > 0,
    )


def image_steps(checkpoint: Checkpoint) -> tuple[Step, ...]:
    """The checkpoint's image preprocessing, checked."""
    file = str(checkpoint.path / "config.json")
    try:
        return parse_steps([ObjectReader(dict(step), file) for step in checkpoint.image_preprocessing], file)
    except (BundleError, TypeError, ValueError) as error:
        raise CheckpointError(f"{file}: image_preprocessing: {error}") from error


def source_tokenizer(checkpoint: Checkpoint, max_tokens: int) -> SourceTokenizer:
    """The checkpoint's tokenizer, for texts of up to `max_tokens` tokens."""
    return SourceTokenizer(
        checkpoint.tokenizer_json, TokenizerSpec(TOKENIZER_FILE, _unknown_token_id(checkpoint), max_tokens)
    )


def _unknown_token_id(checkpoint: Checkpoint) -> int:
    """The id of the tokenizer's unknown token."""
    path = Path(checkpoint.path) / "tokenizer.json"
    try:
        model = json.loads(checkpoint.tokenizer_json)["model"]
        return int(model["vocab"][model["unk_token"]])
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(
            f"{path}: expected a tokenizer with an unknown token, found: {type(error).__name__} {error}"
        ) from error
