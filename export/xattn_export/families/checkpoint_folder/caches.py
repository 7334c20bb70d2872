"""Converts the flat tensors of a graph to the caches of Transformers, and back."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, cast

from torch import Tensor

from xattn_edge.attention import KeyValue
from xattn_edge.attention.caches import flatten

if TYPE_CHECKING:
    from transformers import DynamicCache, EncoderDecoderCache

__all__ = ["cross_presents", "dynamic_cache", "dynamic_presents", "encoder_decoder_cache", "presents"]


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


def cross_presents(cache: EncoderDecoderCache) -> tuple[Tensor, ...]:
    """The keys and values of what the tokens attend to, as `flatten` has them."""
    layers = cache.cross_attention_cache.layers
    return flatten(KeyValue(cast(Tensor, layer.keys), cast(Tensor, layer.values)) for layer in layers)
