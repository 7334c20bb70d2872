"""BLIP for image-text retrieval: two encoders whose embeddings are compared, and a text model that looks at an image.

The second, which scores whether text and image belong together, is the text encoder again with its cross-attention,
and a head of two logits (image-text matching); in a bundle it is the reranker. https://arxiv.org/abs/2201.12086
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from xattn_edge.attention.caches import pairs
from xattn_export.families.base import Embeds, Role, Source
from xattn_export.families.base.standard_roles import (
    image_encoder_role,
    image_token_specs,
    reranker_role,
    text_encoder_role,
)
from xattn_export.families.checkpoint_folder.folder import license_of, load_model, name_of
from xattn_export.families.checkpoint_folder.images import image_steps
from xattn_export.families.checkpoint_folder.tokenizer import source_tokenizer
from xattn_export.families.drawings import captioned_images
from xattn_export.families.layers.common import padding_mask
from xattn_export.families.layers.text.bert import BertLayer, BertTextEmbeddings, cross_projections
from xattn_export.families.layers.text.decoders import CrossKeys
from xattn_export.families.layers.vision.blip import BlipVisionEncoder
from xattn_runtime.bundle.manifest import Similarity

if TYPE_CHECKING:
    from transformers import BlipForImageTextRetrieval

__all__ = ["open_retriever"]


class BlipImageGraph(nn.Module):
    """Image to its embedding, of length 1, and to all its image tokens, none of them padding."""

    def __init__(self, model: BlipForImageTextRetrieval) -> None:
        super().__init__()
        self.vision = BlipVisionEncoder(model.vision_model)
        self.projection = model.vision_proj

    def forward(self, pixel_values: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        tokens = self.vision(pixel_values)
        return F.normalize(self.projection(tokens[:, 0]), dim=-1), tokens, _full_mask(tokens)


class BlipWordsGraph(nn.Module):
    """Text to its embedding, of length 1, and to its words with their positions, before any layer."""

    def __init__(self, embeddings: BertTextEmbeddings, layers: nn.ModuleList, projection: nn.Module) -> None:
        super().__init__()
        self.embeddings, self.layers, self.projection = embeddings, layers, projection

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> tuple[Tensor, Tensor]:
        words, mask = self.embeddings(input_ids), padding_mask(attention_mask)
        tokens = words
        for layer in self.layers:
            tokens = layer(tokens, mask, None)
        return F.normalize(self.projection(tokens[:, 0]), dim=-1), words


class BlipRerankGraph(nn.Module):
    """Words and image tokens to the logit `[batch, 1]` that they belong together: that of yes over that of no."""

    def __init__(self, model: BlipForImageTextRetrieval, layers: nn.ModuleList) -> None:
        super().__init__()
        crosses: list[Any] = [layer.crossattention.self for layer in model.text_encoder.encoder.layer]
        self.cross = CrossKeys(cross_projections(crosses), crosses[0].num_attention_heads)
        self.layers, self.head = layers, model.itm_head

    def forward(
        self, text_tokens: Tensor, attention_mask: Tensor, image_tokens: Tensor, image_mask: Tensor
    ) -> tuple[Tensor]:
        mask, image = padding_mask(attention_mask), pairs(self.cross(image_tokens))
        seen = padding_mask(image_mask, text_tokens.shape[1])
        tokens = text_tokens
        for layer, context in zip(self.layers, image, strict=True):
            tokens = layer(tokens, mask, context, seen)
        return (_yes_over_no(self.head(tokens[:, 0])),)


def open_retriever(folder: Path) -> Source:
    """The model in `folder`; CheckpointError where it is damaged."""
    from transformers import BlipForImageTextRetrieval

    model, weights = load_model(folder, BlipForImageTextRetrieval)
    side_px = int(model.vision_model.embeddings.image_size)
    longest = int(model.config.text_config.max_position_embeddings)

    def embed_text(token_ids: tuple[int, ...]) -> Tensor:
        input_ids = torch.tensor([token_ids])
        return _embed_texts(model, input_ids, torch.ones_like(input_ids))[0]

    def match(pixel_values: Tensor, token_ids: tuple[int, ...]) -> Tensor:
        input_ids = torch.tensor([token_ids])
        output = model(input_ids, pixel_values, use_itm_head=True, attention_mask=torch.ones_like(input_ids))
        return _yes_over_no(output.itm_score)[0, 0]

    return Source(
        name=name_of(folder),
        task="retrieval",
        license=license_of(folder),
        weights=weights,
        roles=_roles(model, side_px, longest),
        tokenizer=source_tokenizer(folder, longest, writes=False),
        reference=Embeds(
            image_steps(folder, side_px, side_px),
            Similarity("cosine"),
            embed_image=lambda pixel_values: _embed_images(model, pixel_values)[0],
            embed_text=embed_text,
            match=match,
        ),
        golden_inputs=captioned_images(),
    )


def _roles(model: Any, side_px: int, longest: int) -> tuple[Role, ...]:
    text = model.config.text_config
    embeddings = BertTextEmbeddings(model.text_encoder)
    layers = nn.ModuleList(BertLayer(layer) for layer in model.text_encoder.encoder.layer)

    def image(pixel_values: Tensor) -> tuple[Tensor, ...]:
        tokens = model.vision_model(pixel_values)[0]
        return _embed_images(model, pixel_values), tokens, _full_mask(tokens)

    def words(input_ids: Tensor, attention_mask: Tensor) -> tuple[Tensor, ...]:
        return _embed_texts(model, input_ids, attention_mask), model.text_encoder.embeddings(input_ids)

    def rerank(
        text_tokens: Tensor, attention_mask: Tensor, image_tokens: Tensor, image_mask: Tensor
    ) -> tuple[Tensor, ...]:
        """Row by row, each with those image tokens that its mask leaves: the model's own layers pass over the mask."""
        states = [
            model.text_encoder(
                encoder_embeds=text_tokens[row : row + 1],
                attention_mask=attention_mask[row : row + 1],
                encoder_hidden_states=image_tokens[row : row + 1, seen.bool()],
            )[0][:, 0]
            for row, seen in enumerate(image_mask)
        ]
        return (_yes_over_no(model.itm_head(torch.cat(states))),)

    positions, image_width = model.vision_model.embeddings.num_positions, model.config.vision_config.hidden_size
    return (
        image_encoder_role(
            BlipImageGraph(model), image, (side_px, side_px), ("image_embeddings", "image_tokens", "image_mask")
        ),
        text_encoder_role(
            BlipWordsGraph(embeddings, layers, model.text_proj),
            words,
            text.vocab_size,
            longest,
            ("text_embeddings", "text_tokens"),
        ),
        reranker_role(
            BlipRerankGraph(model, layers), rerank, text.hidden_size, image_token_specs(positions, image_width), longest
        ),
    )


def _embed_images(model: Any, pixel_values: Tensor) -> Tensor:
    return F.normalize(model.vision_proj(model.vision_model(pixel_values)[0][:, 0]), dim=-1)


def _embed_texts(model: Any, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
    states = model.text_encoder(input_ids, attention_mask=attention_mask)[0]
    return F.normalize(model.text_proj(states[:, 0]), dim=-1)


def _full_mask(tokens: Tensor) -> Tensor:
    """A mask int64 `[batch, tokens]` that hides none."""
    return torch.ones_like(tokens[:, :, 0], dtype=torch.int64)


def _yes_over_no(logits: Tensor) -> Tensor:
    """The logit `[batch, 1]` of the probability that softmax makes of `[batch, 2]`, no and yes."""
    return logits[:, 1:] - logits[:, :1]
