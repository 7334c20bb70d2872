"""Retrieval checkpoints of `xattn-edge train retrieval`: two encoders, and cross-attention that looks again."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from xattn_edge.attention import Tokens
from xattn_edge.models import RetrievalModel, load_checkpoint
from xattn_export.families.base import Embeds, Family, Role, Source
from xattn_export.families.base.standard_roles import (
    image_encoder_role,
    image_token_specs,
    reranker_role,
    text_encoder_role,
)
from xattn_export.families.drawings import captioned_images
from xattn_export.families.own.checkpoint import image_steps, is_checkpoint, size_px, source_tokenizer
from xattn_export.families.own.text import text_encoder_graph
from xattn_runtime.bundle.manifest import Similarity

__all__ = ["XATTN_RETRIEVAL"]


class RetrievalImageGraph(nn.Module):
    """Image `[batch, 3, side, side]` to its embedding, and to image tokens and their mask where these are read."""

    def __init__(self, model: RetrievalModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, pixel_values: Tensor) -> tuple[Tensor, ...]:
        image = self.model.encode_image(pixel_values)
        embeddings = self.model.embed_image(image)
        return (embeddings,) if self.model.matcher is None else (embeddings, image.features, image.mask.to(torch.int64))


class RetrievalTextGraph(nn.Module):
    """Text, ids and mask `[batch, length]`, to its embedding, and to text tokens where these are read."""

    def __init__(self, model: RetrievalModel) -> None:
        super().__init__()
        self.model = model
        self.encoder = text_encoder_graph(model.text_encoder)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> tuple[Tensor, ...]:
        text = self.encoder(input_ids, attention_mask)
        embeddings = self.model.embed_text(text)
        return (embeddings,) if self.model.matcher is None else (embeddings, text.features)


class RetrievalRerankGraph(nn.Module):
    """Text tokens and image tokens to the logits `[batch, 1]` of a match."""

    def __init__(self, model: RetrievalModel) -> None:
        super().__init__()
        self.layers, self.matcher = model.layers, model.matcher
        self.match = model.match

    def forward(
        self, text_tokens: Tensor, attention_mask: Tensor, image_tokens: Tensor, image_mask: Tensor
    ) -> tuple[Tensor]:
        return (self.match(Tokens(text_tokens, attention_mask.bool()), Tokens(image_tokens, image_mask.bool())),)


def _open(folder: Path) -> Source:
    checkpoint = load_checkpoint(folder, RetrievalModel)
    model = checkpoint.model
    roles = (_image_role(model), _text_role(model))

    def embed_text(token_ids: tuple[int, ...]) -> Tensor:
        input_ids = torch.tensor([token_ids])
        return model.embed_text(model.encode_text(input_ids, torch.ones_like(input_ids)))[0]

    def match(pixel_values: Tensor, token_ids: tuple[int, ...]) -> Tensor:
        input_ids = torch.tensor([token_ids])
        text = model.encode_text(input_ids, torch.ones_like(input_ids))
        return model.match(text, model.encode_image(pixel_values))[0, 0]

    return Source(
        name=checkpoint.name,
        task="retrieval",
        license=checkpoint.license,
        weights=(folder / "model.safetensors",),
        roles=roles if model.matcher is None else (*roles, _rerank_role(model)),
        tokenizer=source_tokenizer(checkpoint, model.config.text.max_tokens),
        reference=Embeds(
            image_steps(checkpoint),
            Similarity("softmax", scale=float(model.scale.detach())),
            embed_image=lambda pixel_values: model.embed_image(model.encode_image(pixel_values))[0],
            embed_text=embed_text,
            match=None if model.matcher is None else match,
        ),
        golden_inputs=captioned_images(),
    )


def _image_role(model: RetrievalModel) -> Role:
    image = model.config.image
    graph = RetrievalImageGraph(model)
    return image_encoder_role(
        graph,
        lambda pixel_values: graph(pixel_values),
        size_px(image),
        ("image_embeddings", *(() if model.matcher is None else ("image_tokens", "image_mask"))),
        attends=image.layers > 0,
    )


def _text_role(model: RetrievalModel) -> Role:
    text = model.config.text

    def reference(input_ids: Tensor, attention_mask: Tensor) -> tuple[Tensor, ...]:
        tokens = model.encode_text(input_ids, attention_mask)
        return (model.embed_text(tokens), *(() if model.matcher is None else (tokens.features,)))

    return text_encoder_role(
        RetrievalTextGraph(model),
        reference,
        text.vocabulary,
        text.max_tokens,
        ("text_embeddings", *(() if model.matcher is None else ("text_tokens",))),
        attends=text.layers > 0,
    )


def _rerank_role(model: RetrievalModel) -> Role:
    config = model.config
    graph = RetrievalRerankGraph(model)
    return reranker_role(
        graph,
        lambda *inputs: graph(*inputs),
        config.width,
        image_token_specs(config.image.side**2, config.width),
        config.text.max_tokens,
        attends=config.mechanism.has_attention_operator,
    )


XATTN_RETRIEVAL = Family(
    name="xattn-edge retrieval", recognises=lambda config: is_checkpoint(config, "retrieval"), open=_open
)
