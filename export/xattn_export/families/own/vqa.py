"""Visual question answering checkpoints of `xattn-edge train vqa`: an image encoder and a classifier of questions.

Where an image is the same for every question, the image encoder outputs the keys and values that questions read; else
image tokens, which may read the question in their turn.
"""

from __future__ import annotations

from pathlib import Path
from typing import cast

import torch
from torch import Tensor, nn

from xattn_edge.attention import Tokens
from xattn_edge.models import VqaModel, load_checkpoint
from xattn_edge.models.layer import CrossModalLayer
from xattn_export.families.base import Chooses, Family, Role, Source, TensorSpec, cross_specs
from xattn_export.families.base.standard_roles import classifier_role, image_encoder_role, image_token_specs, text_specs
from xattn_export.families.drawings import shape_images
from xattn_export.families.own.checkpoint import (
    image_steps,
    is_checkpoint,
    keys_and_values_role,
    size_px,
    source_tokenizer,
)
from xattn_export.families.own.text import text_encoder_graph

__all__ = ["XATTN_VQA"]


class VqaImageGraph(nn.Module):
    """Image `[batch, 3, side, side]` to `image_tokens` `[batch, tokens, width]` and their `image_mask`."""

    def __init__(self, model: VqaModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, pixel_values: Tensor) -> tuple[Tensor, Tensor]:
        tokens = Tokens(*self.model.encode_image(pixel_values))
        return tokens.features, tokens.mask.to(torch.int64)


class ClassifierGraph(nn.Module):
    """Question and encoded image to logits and probabilities of the answers."""

    def __init__(self, model: VqaModel) -> None:
        super().__init__()
        self.model = model
        self.text_encoder = text_encoder_graph(model.text_encoder)

    def forward(self, input_ids: Tensor, attention_mask: Tensor, *image: Tensor) -> tuple[Tensor, Tensor]:
        logits = self.model.decide(self.text_encoder(input_ids, attention_mask), _as_encoded(self.model, image))
        return logits, logits.softmax(-1)


def _open(folder: Path) -> Source:
    checkpoint = load_checkpoint(folder, VqaModel)
    model = checkpoint.model
    config = model.config

    def answer_logits(pixel_values: Tensor, question_ids: tuple[int, ...]) -> Tensor:
        input_ids = torch.tensor([question_ids])
        return cast(Tensor, model(pixel_values, input_ids, torch.ones_like(input_ids))[0])

    return Source(
        name=checkpoint.name,
        task="vqa",
        license=checkpoint.license,
        weights=(folder / "model.safetensors",),
        roles=(_image_role(model), _classifier_role(model)),
        tokenizer=source_tokenizer(checkpoint, config.text.max_tokens),
        reference=Chooses(image_steps(checkpoint), config.answers, answer_logits),
        golden_inputs=shape_images(),
    )


def _image_role(model: VqaModel) -> Role:
    image = model.config.image
    if model.config.reads_once:
        return keys_and_values_role(
            image,
            model.image_encoder,
            [cast(CrossModalLayer, layer).attention for layer in model.layers],
            reference=model.encode_image,
        )
    graph = VqaImageGraph(model)
    return image_encoder_role(
        graph,
        lambda pixel_values: graph(pixel_values),
        size_px(image),
        ("image_tokens", "image_mask"),
        attends=image.layers > 0,
    )


def _classifier_role(model: VqaModel) -> Role:
    config = model.config

    def reference(input_ids: Tensor, attention_mask: Tensor, *image: Tensor) -> tuple[Tensor, ...]:
        logits = model.answer(input_ids, attention_mask, _as_encoded(model, image))
        return logits, logits.softmax(-1)

    return classifier_role(
        ClassifierGraph(model),
        reference,
        (*text_specs(config.text.vocabulary), *_image_specs(model)),
        config.text.max_tokens,
        attends=config.text.layers > 0 or config.mechanism.has_attention_operator,
    )


def _image_specs(model: VqaModel) -> tuple[TensorSpec, ...]:
    config = model.config
    positions, options = config.image.side**2, config.mechanism.options
    if config.reads_once:
        return cross_specs(config.layers, options.key_heads, positions, config.width // options.heads)
    return image_token_specs(positions, config.width)


def _as_encoded(model: VqaModel, image: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """What a graph takes of an image, in the dtypes of `VqaModel.encode_image`."""
    if model.config.reads_once:
        return image
    features, mask = image
    return features, mask.bool()


XATTN_VQA = Family(
    name="xattn-edge vqa",
    recognises=lambda config: is_checkpoint(config, "vqa"),
    open=_open,
)
