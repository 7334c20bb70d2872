"""What the families of our own checkpoints share: image encoders, preprocessing and tokenizer of a checkpoint."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any, cast

from torch import Tensor, nn

from xattn_edge.attention import CrossModalAttention, KeyValue, split_heads
from xattn_edge.encoders import CnnEncoder, ImageEncoderConfig, PatchEncoder
from xattn_edge.encoders.transformer import SelfAttentionLayer
from xattn_edge.models import Checkpoint, Model
from xattn_export.families.base import TOKENIZER_FILE, Role, SourceTokenizer
from xattn_export.families.base.standard_roles import image_encoder_role
from xattn_export.families.layers.common import attend, attend_with_cache, fuse_linears
from xattn_runtime.bundle.contract import cross_names
from xattn_runtime.bundle.manifest import TaskName
from xattn_runtime.errors import BundleError, CheckpointError
from xattn_runtime.json_reader import ObjectReader
from xattn_runtime.preprocess.steps import Step, parse_steps
from xattn_runtime.preprocess.tokenizer import TokenizerSpec

__all__ = [
    "SelfAttentionGraph",
    "image_steps",
    "is_checkpoint",
    "keys_and_values_role",
    "size_px",
    "source_tokenizer",
]


class SelfAttentionGraph(nn.Module):
    """Self-attention of a Transformer layer of ours, with queries, keys and values from one product."""

    def __init__(self, attention: CrossModalAttention) -> None:
        super().__init__()
        self.heads = attention.options.heads
        self.project = fuse_linears(attention.q_linear, attention.k_linear, attention.v_linear)
        self.output = attention.out_linear

    def forward(self, normed: Tensor) -> Tensor:
        """`[batch, length, width]`, every token attending to all; the same shape comes out."""
        query, key, value = self.project(normed).chunk(3, -1)
        return cast(Tensor, self.output(attend(query, key, value, self.heads)))

    def with_cache(self, normed: Tensor, past: KeyValue) -> tuple[Tensor, KeyValue]:
        """The same, causal and after `past`; the longer cache comes out too."""
        query, key, value = self.project(normed).chunk(3, -1)
        attended, present = attend_with_cache(query, key, value, past, self.heads)
        return self.output(attended), present


class KeysAndValuesGraph(nn.Module):
    """Image `[batch, 3, side, side]` to the cross keys and values of every layer."""

    def __init__(self, encoder: CnnEncoder | PatchEncoder, cross: Sequence[CrossModalAttention]) -> None:
        super().__init__()
        self.encoder = encoder
        self.attentions = nn.ModuleList(
            SelfAttentionGraph(cast(SelfAttentionLayer, layer).attention) for layer in encoder.layers
        )
        self.heads = cross[0].options.key_heads
        self.contexts = fuse_linears(*chain.from_iterable((each.k_linear, each.v_linear) for each in cross))
        self.tensors = 2 * len(cross)

    def forward(self, pixel_values: Tensor) -> tuple[Tensor, ...]:
        tokens = self.encoder.embed(pixel_values)
        for module, attention in zip(self.encoder.layers, self.attentions, strict=True):
            layer = cast(SelfAttentionLayer, module)
            tokens = tokens + attention(layer.attention_norm(tokens))
            tokens = tokens + layer.feed_forward(layer.feed_forward_norm(tokens))
        contexts = self.contexts(self.encoder.norm(tokens)).chunk(self.tensors, -1)
        return tuple(split_heads(context, self.heads) for context in contexts)


def is_checkpoint(config: Mapping[str, Any], task: TaskName) -> bool:
    """Whether `config` is that of a checkpoint of ours for `task`."""
    return "format_version" in config and config.get("task") == task


def keys_and_values_role(
    config: ImageEncoderConfig,
    encoder: CnnEncoder | PatchEncoder,
    cross: Sequence[CrossModalAttention],
    reference: Callable[[Tensor], tuple[Tensor, ...]],
) -> Role:
    """The role `image_encoder` of a model whose cross-attention, layer by layer, is `cross`.

    `reference` computes keys and values of pixels, `key_0`, `value_0`, …, by the model itself.
    """
    return image_encoder_role(
        KeysAndValuesGraph(encoder, cross),
        reference,
        size_px(config),
        cross_names(len(cross)),
        attends=config.layers > 0,
    )


def size_px(config: ImageEncoderConfig) -> tuple[int, int]:
    """Height and width of the images that an encoder takes."""
    return config.image_size_px, config.image_size_px


def image_steps(checkpoint: Checkpoint[Model]) -> tuple[Step, ...]:
    """The checkpoint's image preprocessing, checked."""
    file = str(checkpoint.path / "config.json")
    try:
        return parse_steps([ObjectReader(dict(step), file) for step in checkpoint.image_preprocessing], file)
    except (BundleError, TypeError, ValueError) as error:
        reason = str(error).removeprefix(f"{file}: ")
        raise CheckpointError(f"{file}: image_preprocessing: {reason}") from error


def source_tokenizer(checkpoint: Checkpoint[Model], max_tokens: int) -> SourceTokenizer:
    """The checkpoint's tokenizer, for texts of up to `max_tokens` tokens."""
    return SourceTokenizer(
        checkpoint.tokenizer_json, TokenizerSpec(TOKENIZER_FILE, _unknown_token_id(checkpoint), max_tokens)
    )


def _unknown_token_id(checkpoint: Checkpoint[Model]) -> int:
    """The id of the tokenizer's unknown token."""
    path = Path(checkpoint.path) / "tokenizer.json"
    try:
        model = json.loads(checkpoint.tokenizer_json)["model"]
        return int(model["vocab"][model["unk_token"]])
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(
            f"{path}: expected a tokenizer with an unknown token, found: {type(error).__name__} {error}"
        ) from error
