"""The roles of a vision-language model, each with Transformers' own computation behind the same inputs and outputs."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor

from xattn_export.families.base import Generated, Role
from xattn_export.families.base.standard_roles import decoder_role, image_encoder_role
from xattn_export.families.checkpoint_folder.caches import cache_with_states, presents_with_states
from xattn_export.families.checkpoint_folder.reference import generated
from xattn_export.families.layers.common import head
from xattn_export.families.layers.connectors.table import CONNECTORS
from xattn_export.families.layers.towers.table import patches_across, tower_of
from xattn_export.families.transformers.vision_language.architecture import Architecture, Opened
from xattn_export.families.transformers.vision_language.graphs import DecoderGraph, ImageGraph
from xattn_runtime.bundle.manifest import Decoding

if TYPE_CHECKING:
    from transformers import DynamicCache

__all__ = ["decoder_of", "generate_of", "image_encoder_of"]

# Rotary positions are computed, not looked up: up to here a comparison sees what there is to see.
_COMPARED_POSITIONS = 1024


def image_encoder_of(architecture: Architecture, opened: Opened) -> Role:
    """Images, or tiles, to image tokens."""
    model, side_px = opened.model, opened.side_px
    vision = model.get_encoder(modality="image")
    connector = CONNECTORS[model.config.model_type].build(model.model, patches_across(vision.config, side_px))
    graph = ImageGraph(tower_of(vision, side_px, architecture.features(model.config)), connector)

    def reference(pixel_values: Tensor) -> tuple[Tensor, ...]:
        return (torch.stack(tuple(architecture.image_features(model, pixel_values))),)

    return image_encoder_role(graph, reference, (side_px, side_px), ("image_tokens",))


def decoder_of(architecture: Architecture, opened: Opened) -> Role:
    """The language model, which reads image tokens among its words."""
    model = opened.model
    config, placeholder = model.config.text_config, int(model.config.image_token_id)

    def reference(input_ids: Tensor, image_tokens: Tensor, *past: Tensor) -> tuple[Tensor, ...]:
        cache = _cache(architecture, past, config)
        inputs: dict[str, Any] = {}
        # After a cache, a placeholder is a token like others.
        if not past[0].shape[2]:
            inputs = _marks(architecture, input_ids, input_ids.shape[1], placeholder)
            if bool((input_ids == placeholder).any()):
                inputs |= _known_image(architecture, image_tokens)
        output = model(input_ids, past_key_values=cache, use_cache=True, logits_to_keep=1, **inputs)
        return *head(output.logits[:, -1]), *presents_with_states(cache)

    graph = DecoderGraph(architecture, model)
    return decoder_role(
        graph,
        reference,
        vocabulary=config.vocab_size,
        layers=graph.decoder.attention_layers,
        kv_heads=config.num_key_value_heads,
        head_width=graph.decoder.head_width,
        longest=min(config.max_position_embeddings, _COMPARED_POSITIONS),
        image_width=config.hidden_size,
        placeholder=placeholder,
        states=graph.decoder.states,
    )


def generate_of(
    architecture: Architecture, opened: Opened, decoding: Decoding
) -> Callable[[Tensor, tuple[int, ...]], Generated]:
    """What Transformers generates for the pixels of an image, in tiles or not, and the ids of a prompt."""
    model, placeholder = opened.model, int(opened.model.config.image_token_id)

    def generate(pixel_values: Tensor, prompt_ids: tuple[int, ...]) -> Generated:
        prompt = torch.tensor([prompt_ids])
        tiles = pixel_values[0] if opened.pipeline.tiled else pixel_values
        features = tuple(architecture.image_features(model, tiles))

        def inputs(ids: Tensor) -> dict[str, Any]:
            # An object of its own for each call: beam search repeats the rows of what it is given in place.
            return _marks(architecture, ids, prompt.shape[1], placeholder) | _known_image(architecture, features)

        def forced_logits(token_ids: tuple[int, ...]) -> Tensor:
            ids = torch.cat((prompt, torch.tensor([token_ids], dtype=torch.int64)), 1)
            count = len(token_ids) + 1
            return cast(Tensor, model(ids, use_cache=False, logits_to_keep=count, **inputs(ids)).logits[0])

        def generate(**settings: Any) -> Any:
            return model.generate(prompt, attention_mask=torch.ones_like(prompt), **inputs(prompt), **settings)

        return generated(generate, forced_logits, prompt_length=prompt.shape[1], end_token_ids=decoding.end_token_ids)

    return generate


def _cache(architecture: Architecture, past: Sequence[Tensor], config: Any) -> DynamicCache:
    """Transformers' cache; one that nobody has written into is how PaliGemma knows a prompt."""
    from transformers import DynamicCache

    is_prompt = architecture.mask == "prompt" and not past[0].shape[2]
    return DynamicCache() if is_prompt else cache_with_states(past, config)


def _marks(architecture: Architecture, ids: Tensor, prompt: int, placeholder: int) -> dict[str, Tensor]:
    """What the processor says of every token where the mask depends on it; the prompt is the first `prompt` of them."""
    if architecture.mask == "prompt":
        return {"token_type_ids": (torch.arange(ids.shape[1]) >= prompt).long().expand(len(ids), -1)}
    return {"token_type_ids": (ids == placeholder).long()} if architecture.mask == "images" else {}


def _known_image(architecture: Architecture, features: Iterable[Tensor]) -> dict[str, Any]:
    """Image tokens of each image or tile as the model takes them where they are known."""
    from transformers.modeling_outputs import BaseModelOutputWithPooling

    listed = list(features)
    tokens: Any = listed if architecture.lists_features else torch.stack(listed)
    return {"mm_encoder_outputs": {"image": BaseModelOutputWithPooling(pooler_output=tokens)}}
