"""The graphs of Qwen2-VL and its kind, each with Transformers' own computation behind the same inputs and outputs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from xattn_edge.attention.caches import flatten, pairs
from xattn_export.families.base import Role
from xattn_export.families.base.standard_roles import decoder_role, patch_encoder_role
from xattn_export.families.checkpoint_folder.caches import dynamic_cache, dynamic_presents
from xattn_export.families.layers.common import head, image_places, placed_image
from xattn_export.families.layers.grid_positions import grid_positions
from xattn_export.families.layers.language.table import language_decoder
from xattn_export.families.layers.towers.patch_grid import PatchGridTower

__all__ = ["GridDecoderGraph", "decoder_of", "image_encoder_of", "image_outputs"]

# Rotary positions are computed, not looked up: up to here a comparison sees what there is to see.
_COMPARED_POSITIONS = 1024


class GridDecoderGraph(nn.Module):
    """One decoding step: tokens after a cache, image tokens in their places; logits of the last position alone.

    An image token that is wider than a word holds, behind what stands for a word, what is added to the results of the
    first layers (DeepStack).
    """

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.words = model.model.language_model.embed_tokens
        self.decoder = language_decoder(model.model.language_model)
        self.head = model.lm_head
        self.placeholder = int(model.config.image_token_id)

    def forward(
        self, input_ids: Tensor, image_tokens: Tensor, image_grids: Tensor, *past: Tensor
    ) -> tuple[Tensor, ...]:
        cache = pairs(past)
        before = cache[0].key.shape[2]
        is_image = image_places(input_ids, self.placeholder, before)
        words = self.words(input_ids)
        image, *added = torch.split(placed_image(is_image, image_tokens), words.shape[2], -1)
        here = is_image[..., None]
        tokens, present = self.decoder(
            torch.where(here, image, words),
            cache,
            position_ids=grid_positions(input_ids, image_grids, self.placeholder, before),
            added=[torch.where(here, features, 0.0) for features in added],
        )
        return *head(self.head(tokens[:, -1])), *flatten(present)


def image_encoder_of(model: Any, width: int) -> Role:
    """Patches of `width` values to image tokens."""

    def reference(patches: Tensor, grid: Tensor) -> tuple[Tensor, ...]:
        grids = torch.cat((torch.ones(1, dtype=grid.dtype), grid))[None].expand(len(patches), 3)
        features = model.get_image_features(patches.flatten(0, 1), grids)
        levels = [features.pooler_output, *(getattr(features, "deepstack_features", None) or ())]
        return (torch.cat([torch.stack(tuple(level)) for level in levels], -1),)

    return patch_encoder_role(PatchGridTower(model.model.visual), reference, width)


def decoder_of(model: Any) -> Role:
    """The language model, which reads image tokens among its words."""
    config, placeholder = model.config.text_config, int(model.config.image_token_id)
    merge, width = int(model.config.vision_config.spatial_merge_size), config.hidden_size
    stacked = len(getattr(model.config.vision_config, "deepstack_visual_indexes", ()))

    def reference(input_ids: Tensor, image_tokens: Tensor, image_grids: Tensor, *past: Tensor) -> tuple[Tensor, ...]:
        cache, length = dynamic_cache(pairs(past)), past[0].shape[2]
        grids = [_thw(rows, merge) for rows in image_grids]
        model.model.rope_deltas = None
        inputs: dict[str, Any] = {}
        if length:
            model.model.rope_deltas = torch.cat([_delta(model, grid, placeholder) for grid in grids])
        elif bool((input_ids == placeholder).any()):
            levels = [level.flatten(0, 1) for level in torch.split(image_tokens, width, -1)]
            inputs = {
                "mm_encoder_outputs": {"image": image_outputs(levels[:1], [[level] for level in levels[1:]])},
                "image_grid_thw": torch.cat(grids),
                "mm_token_type_ids": (input_ids == placeholder).int(),
            }
        output = model(input_ids, past_key_values=cache, use_cache=True, logits_to_keep=1, **inputs)
        return *head(output.logits[:, -1]), *dynamic_presents(cache)

    graph = GridDecoderGraph(model)
    return decoder_role(
        graph,
        reference,
        vocabulary=config.vocab_size,
        layers=config.num_hidden_layers,
        kv_heads=config.num_key_value_heads,
        head_width=graph.decoder.head_width,
        longest=min(config.max_position_embeddings, _COMPARED_POSITIONS),
        image_width=width * (1 + stacked),
        placeholder=placeholder,
        has_grids=True,
    )


def image_outputs(tokens: Sequence[Tensor], stacked: Sequence[Sequence[Tensor]] | None = None) -> Any:
    """Image tokens `[tokens, width]` as the model takes them where they are known, and DeepStack's, level by level."""
    from transformers.models.qwen3_vl.modeling_qwen3_vl import BaseModelOutputWithDeepstackFeatures

    return BaseModelOutputWithDeepstackFeatures(pooler_output=list(tokens), deepstack_features=stacked)


def _thw(grids: Tensor, merge: int) -> Tensor:
    """Rows and columns of image tokens `[images, 2]` as frames, rows and columns of patches of those that there are."""
    present = grids[grids.prod(-1) > 0]
    return torch.cat((torch.ones_like(present[:, :1]), present * merge), -1)


def _delta(model: Any, grids: Tensor, placeholder: int) -> Tensor:
    """How far positions are from places behind a prompt with these images, `[1, 1]`, as the model counts them."""
    merge = int(model.config.vision_config.spatial_merge_size)
    runs = [[placeholder - 1, *[placeholder] * int(grid.prod() // merge**2)] for grid in grids]
    ids = torch.tensor([[token for run in runs for token in run]])
    delta: Tensor = model.model.get_rope_index(ids, (ids == placeholder).int(), grids)[1]
    return delta
