"""Captioning checkpoints of `xattn-edge train caption`: an image encoder and a decoder that attends to the image."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from xattn_edge.attention import KeyValue
from xattn_edge.attention.caches import flatten, pairs
from xattn_edge.models import CaptionModel, load_checkpoint
from xattn_edge.models.caption import CaptionDecoderLayer
from xattn_export.families.base import Family, Generated, Generates, Role, Source, generated_greedily
from xattn_export.families.base.standard_roles import decoder_role
from xattn_export.families.drawings import caption_images
from xattn_export.families.layers.common import head
from xattn_export.families.own.checkpoint import (
    SelfAttentionGraph,
    image_steps,
    is_checkpoint,
    keys_and_values_role,
    source_tokenizer,
)
from xattn_runtime.bundle.manifest import Decoding

__all__ = ["XATTN_CAPTION"]


class CaptionDecoderGraph(nn.Module):
    """One decoding step: tokens after a cache, attending to the image; logits of the last position alone."""

    def __init__(self, model: CaptionModel) -> None:
        super().__init__()
        self.model = model
        self.layers = nn.ModuleList(CaptionLayerGraph(cast(CaptionDecoderLayer, layer)) for layer in model.layers)

    def forward(self, input_ids: Tensor, *caches: Tensor) -> tuple[Tensor, ...]:
        """`caches` holds the past keys and values of every layer, then the cross keys and values."""
        past, cross = _past_and_cross(caches, len(self.layers))
        tokens = _embedded(self.model, input_ids, past[0])
        seen, present = tokens, []
        for layer, layer_past, layer_cross in zip(self.layers, past, cross, strict=True):
            tokens, seen, layer_present = layer(tokens, layer_past, layer_cross)
            present.append(layer_present)
        return *head(self.model.decide(tokens[:, -1], seen[:, -1])), *flatten(present)


class CaptionLayerGraph(nn.Module):
    """A `CaptionDecoderLayer`, its cache kept by the attention operator itself."""

    def __init__(self, layer: CaptionDecoderLayer) -> None:
        super().__init__()
        self.self_attention_norm = layer.self_attention_norm
        self.self_attention = SelfAttentionGraph(layer.self_attention)
        self.cross = layer.cross

    def forward(self, tokens: Tensor, past: KeyValue, context: KeyValue) -> tuple[Tensor, Tensor, KeyValue]:
        """As `CaptionDecoderLayer.forward`, without its mask: the operator is causal by itself."""
        attended, present = self.self_attention.with_cache(self.self_attention_norm(tokens), past)
        return *self.cross.read(tokens + attended, context), present


def _open(folder: Path) -> Source:
    checkpoint = load_checkpoint(folder, CaptionModel)
    model = checkpoint.model
    config = model.config
    # One position holds the start token: so a caption that is cut off can still be scored up to its last token.
    most_new_tokens = config.max_tokens - 1
    decoding = Decoding((config.start_token_id,), (config.end_token_id,), config.pad_token_id, most_new_tokens)

    def generate(pixel_values: Tensor, prompt_ids: tuple[int, ...]) -> Generated:
        token_ids = tuple(model.generate(pixel_values)[0][:most_new_tokens])
        logits = model(pixel_values, torch.tensor([[config.start_token_id, *token_ids]]))[0]
        return generated_greedily(token_ids, logits.numpy())

    return Source(
        name=checkpoint.name,
        task="caption",
        license=checkpoint.license,
        weights=(folder / "model.safetensors",),
        roles=(_image_role(model), _decoder_role(model)),
        tokenizer=source_tokenizer(checkpoint, config.max_tokens),
        reference=Generates(image_steps(checkpoint), decoding, generate),
        golden_inputs=caption_images(),
    )


def _image_role(model: CaptionModel) -> Role:
    return keys_and_values_role(
        model.config.image,
        model.image_encoder,
        [cast(CaptionDecoderLayer, layer).cross.attention for layer in model.layers],
        reference=lambda pixel_values: flatten(model.encode_image(pixel_values)),
    )


def _decoder_role(model: CaptionModel) -> Role:
    config = model.config
    layers = config.layers

    def reference(input_ids: Tensor, *caches: Tensor) -> tuple[Tensor, ...]:
        logits, present = model.decode(input_ids, *_past_and_cross(caches, layers))
        return *head(logits[:, -1]), *flatten(present)

    return decoder_role(
        CaptionDecoderGraph(model),
        reference,
        vocabulary=config.vocabulary,
        layers=layers,
        kv_heads=config.heads,
        head_width=config.width // config.heads,
        longest=config.max_tokens,
        cross_heads=config.mechanism.options.key_heads,
        cross_tokens=config.image.side**2,
    )


def _past_and_cross(caches: Sequence[Tensor], layers: int) -> tuple[list[KeyValue], list[KeyValue]]:
    return pairs(caches[: 2 * layers]), pairs(caches[2 * layers :])


def _embedded(model: CaptionModel, input_ids: Tensor, past: KeyValue) -> Tensor:
    """Tokens of ids after `past`.

    Positions by lookup: a slice of the table would bind `past` and `length` to its size in the exported program.
    """
    past_length = past.key.shape[2]
    positions = torch.arange(past_length, past_length + input_ids.shape[1], device=input_ids.device)
    return cast(Tensor, model.embedding(input_ids) + F.embedding(positions, model.position))


XATTN_CAPTION = Family(
    name="xattn-edge caption",
    recognises=lambda config: is_checkpoint(config, "caption"),
    open=_open,
)
