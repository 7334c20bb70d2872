"""Roles of Transformers models: the specifications that all families share, and caches as the models want them.

A family gives the module that is exported and the original behind the same flat tensors; the names, axes and order of
the tensors are made here. It knows no architecture.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, cast

from torch import Tensor, nn

from xattn_edge.attention import KeyValue
from xattn_edge.attention.caches import flatten
from xattn_export.families.base import Role, Symbol, TensorSpec, key_value_specs
from xattn_runtime.bundle.contract import past_names, present_names
from xattn_runtime.errors import CheckpointError
from xattn_runtime.preprocess.steps import Step, output_size_px

if TYPE_CHECKING:
    from transformers import DynamicCache, EncoderDecoderCache

__all__ = [
    "decoder_role",
    "dynamic_cache",
    "dynamic_presents",
    "encoder_decoder_cache",
    "head",
    "image_encoder_role",
    "image_steps",
    "presents",
    "text_encoder_role",
]

Reference = Callable[..., tuple[Tensor, ...]]


def image_steps(folder: Path, height_px: int, width_px: int) -> tuple[Step, ...]:
    """The folder's image preprocessing, which must give pictures of the size that the model takes."""
    from xattn_export.families.checkpoint_folder.images import image_steps_of

    steps = image_steps_of(folder)
    found = output_size_px(steps)
    if found != (height_px, width_px):
        raise CheckpointError(
            f"{folder}: expected image preprocessing to {height_px} × {width_px} pixels, as config.json says of the "
            f"model, found {found[0]} × {found[1]}; the two must agree"
        )
    return steps


def image_encoder_role(
    module: nn.Module, reference: Reference, size_px: tuple[int, int], outputs: Sequence[str]
) -> Role:
    """Picture `[batch, 3, height, width]` to `outputs`: keys and values, or embeddings, or image tokens."""
    pixel_values = TensorSpec("pixel_values", ("batch", 3, *size_px), "normal")
    return Role("image_encoder", module, reference, (pixel_values,), tuple(outputs))


def text_encoder_role(
    module: nn.Module,
    reference: Reference,
    vocabulary: int,
    longest: int,
    outputs: Sequence[str],
    image: tuple[TensorSpec, ...] = (),
) -> Role:
    """Text, and the keys and values of a picture where it attends to one, to `outputs`."""
    text = (
        TensorSpec("input_ids", ("batch", "length"), "token_ids", vocabulary),
        TensorSpec("attention_mask", ("batch", "length"), "mask"),
    )
    return Role("text_encoder", module, reference, (*text, *image), tuple(outputs), longest)


def decoder_role(
    module: nn.Module,
    reference: Reference,
    *,
    vocabulary: int,
    layers: int,
    kv_heads: int,
    head_width: int,
    longest: int,
    cross_heads: int = 0,
    cross_tokens: int | Symbol = "context",
    prefix: int = 0,
    image_width: int = 0,
    placeholder: int | None = None,
) -> Role:
    """A decoding step: new tokens after a cache, and the cross keys and values of every layer if `cross_heads`.

    Args:
        longest: positions that the decoder has, prompt and prefix included.
        cross_tokens: image tokens; `context` where they are those of another text.
        prefix: image tokens that every cache begins with.
        image_width: of the image tokens that the step is given, if it is; `placeholder` is the token that stands for
            one in the text.
    """
    cross = key_value_specs("cross", layers, cross_heads, cross_tokens, head_width) if cross_heads else ()
    image = (TensorSpec("image_tokens", ("batch", "context", image_width), "normal"),) if image_width else ()
    inputs = (
        TensorSpec("input_ids", ("batch", "length"), "token_ids", vocabulary, placeholder=placeholder),
        *image,
        *(TensorSpec(name, ("batch", kv_heads, "past", head_width), "normal") for name in past_names(layers)),
        *cross,
    )
    outputs = ("logits", "next_token", "next_log_prob", *present_names(layers))
    return Role("decoder", module, reference, inputs, outputs, longest, prefix=prefix)


def head(logits: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """`logits`, `next_token` and `next_log_prob` of logits `[batch, vocabulary]`."""
    return logits, logits.argmax(-1), logits.log_softmax(-1).amax(-1)


def dynamic_cache(past: Sequence[KeyValue]) -> DynamicCache:
    """Transformers' cache of a decoder that attends to nothing else, so that its own layers go on from it."""
    from transformers import DynamicCache

    cache = DynamicCache()
    for layer, (key, value) in enumerate(past):
        cache.update(key, value, layer)
    return cache


def dynamic_presents(cache: DynamicCache) -> tuple[Tensor, ...]:
    """What it holds, as `flatten` has it."""
    return flatten(KeyValue(cast(Tensor, layer.keys), cast(Tensor, layer.values)) for layer in cache.layers)


def encoder_decoder_cache(past: Sequence[KeyValue], cross: Sequence[KeyValue]) -> EncoderDecoderCache:
    """Transformers' cache that holds these keys and values, so that its own layers go on from them."""
    from transformers import DynamicCache, EncoderDecoderCache

    own, other = DynamicCache(), DynamicCache()
    for cache, series in ((own, past), (other, cross)):
        for layer, (key, value) in enumerate(series):
            if key.shape[2]:
                cache.update(key, value, layer)
    return EncoderDecoderCache(own, other)


def presents(cache: EncoderDecoderCache) -> tuple[Tensor, ...]:
    """The keys and values of the tokens themselves, as `flatten` has them."""
    layers = cache.self_attention_cache.layers
    return flatten(KeyValue(cast(Tensor, layer.keys), cast(Tensor, layer.values)) for layer in layers)
