"""Models that put images and texts into one space, each by an encoder of its own: what CLIP and SigLIP share.

It knows neither how states are pooled nor which tokens see each other; that is in `clip.py` and `siglip.py`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from xattn_export.families.base import Embeds, Role, Source, SourceTokenizer
from xattn_export.families.base.standard_roles import image_encoder_role, text_specs
from xattn_export.families.checkpoint_folder.folder import license_of, name_of
from xattn_export.families.checkpoint_folder.images import image_steps
from xattn_export.families.checkpoint_folder.tokenizer import source_tokenizer
from xattn_export.families.drawings import captioned_images
from xattn_export.families.layers.common import normalized
from xattn_runtime.bundle.manifest import Similarity

__all__ = ["ImageEmbeddingGraph", "TextEmbeddingGraph", "dual_encoder_source"]


class ImageEmbeddingGraph(nn.Module):
    """Image to an embedding of length 1. `features`: `[batch, 3, height, width]` to `[batch, width]`."""

    def __init__(self, features: nn.Module) -> None:
        super().__init__()
        self.features = features

    def forward(self, pixel_values: Tensor) -> tuple[Tensor]:
        return (normalized(self.features(pixel_values)),)


class TextEmbeddingGraph(nn.Module):
    """Text to an embedding of length 1. `features`: ids and mask `[batch, length]` to `[batch, width]`."""

    def __init__(self, features: nn.Module) -> None:
        super().__init__()
        self.features = features

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> tuple[Tensor]:
        return (normalized(self.features(input_ids, attention_mask)),)


def dual_encoder_source(
    folder: Path,
    model: Any,
    weights: tuple[Path, ...],
    *,
    image_features: nn.Module,
    text_features: nn.Module,
    similarity: Similarity,
    ends_with: int | None = None,
    padded_with: Callable[[SourceTokenizer], int] | None = None,
) -> Source:
    """The source of a model with Transformers' `get_image_features` and `get_text_features`.

    Args:
        image_features, text_features: the same two, re-expressed for export.
        ends_with: the token that a text is pooled at.
        padded_with: the tokenizer → the token that fills every text up to the most that the model takes; None where
            texts are left as long as they are.
    """
    side_px = int(model.config.vision_config.image_size)
    text = model.config.text_config
    tokenizer = source_tokenizer(folder, text.max_position_embeddings, writes=False)
    if padded_with is not None:
        spec = replace(tokenizer.spec, pad_to=text.max_position_embeddings, pad_token_id=padded_with(tokenizer))
        tokenizer = replace(tokenizer, spec=spec)
    embed_images = _embedder(model.get_image_features)
    embed_texts = _embedder(model.get_text_features)

    def embed_text(token_ids: tuple[int, ...]) -> Tensor:
        input_ids = torch.tensor([token_ids])
        return embed_texts(input_ids, torch.ones_like(input_ids))[0][0]

    return Source(
        name=name_of(folder),
        task="retrieval",
        license=license_of(folder),
        weights=weights,
        roles=(
            image_encoder_role(
                ImageEmbeddingGraph(image_features), embed_images, (side_px, side_px), ("image_embeddings",)
            ),
            Role(
                "text_encoder",
                TextEmbeddingGraph(text_features),
                embed_texts,
                text_specs(text.vocab_size, ends_with=ends_with),
                ("text_embeddings",),
                text.max_position_embeddings,
            ),
        ),
        tokenizer=tokenizer,
        reference=Embeds(
            image_steps(folder, side_px, side_px),
            similarity,
            embed_image=lambda pixel_values: embed_images(pixel_values)[0][0],
            embed_text=embed_text,
        ),
        golden_inputs=captioned_images(),
    )


def _embedder(features: Callable[..., Any]) -> Callable[..., tuple[Tensor]]:
    """The output of `features`, normalized to length 1 as the model's own forward does before it compares."""

    def embed(*inputs: Tensor) -> tuple[Tensor]:
        pooled = features(*inputs).pooler_output
        return (pooled / pooled.norm(dim=-1, keepdim=True),)

    return embed
