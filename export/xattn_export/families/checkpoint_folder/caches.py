"""Converts the flat tensors of a graph to the caches of Transformers, and back."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, cast

from torch import Tensor
from torch.nn import functional

from xattn_edge.attention import KeyValue
from xattn_edge.attention.caches import flatten, pairs

if TYPE_CHECKING:
    from transformers import DynamicCache, EncoderDecoderCache

__all__ = [
    "cache_with_states",
    "cross_presents",
    "dynamic_cache",
    "dynamic_presents",
    "encoder_decoder_cache",
    "presents",
    "presents_with_states",
]


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


def cache_with_states(past: Sequence[Tensor], config: Any) -> DynamicCache:
    """As `dynamic_cache`, of a text model with this configuration whose layers may convolve instead (`conv`).

    past: keys and values of the layers that attend, as `flatten` has them, then the states `[batch, width, kernel - 1]`
        of those that convolve. Transformers keeps one token more of a state, which it does not read.
    """
    from transformers import DynamicCache

    attends = [layer_type != "conv" for layer_type in getattr(config, "layer_types", None) or ()]
    if all(attends):
        return dynamic_cache(pairs(past))
    keys_and_values, states = iter(pairs(past[: 2 * sum(attends)])), iter(past[2 * sum(attends) :])
    cache = DynamicCache(config=config)
    for layer, is_attention in enumerate(attends):
        if is_attention:
            cache.update(*next(keys_and_values), layer)
        else:
            cache.update_conv_state(functional.pad(next(states), (1, 0)), layer)
    return cache


def presents_with_states(cache: DynamicCache) -> tuple[Tensor, ...]:
    """What it holds, as `cache_with_states` takes it."""
    keys_and_values = [layer for layer in cache.layers if hasattr(layer, "keys")]
    states = [cast(Any, layer).conv_states[0][..., 1:] for layer in cache.layers if not hasattr(layer, "keys")]
    return (*flatten(KeyValue(cast(Tensor, each.keys), cast(Tensor, each.values)) for each in keys_and_values), *states)


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
