"""Visual question answering checkpoints of any mechanism and fusion: an image encoder and a classifier of questions."""

from __future__ import annotations

from pathlib import Path
from typing import cast

import torch
from torch import Tensor, nn

from xattn_edge.attention import Tokens
from xattn_edge.encoders import LstmTextEncoder
from xattn_edge.models import CrossModalVqaConfig, CrossModalVqaModel, load_checkpoint
from xattn_export.families.base import Chooses, Family, Role, Source, TensorSpec
from xattn_export.families.drawings import shape_images
from xattn_export.families.own.checkpoint import image_steps, is_checkpoint, source_tokenizer
from xattn_export.families.own.vqa import LstmGraph

__all__ = ["XATTN_CROSS_MODAL"]


class ImageGraph(nn.Module):
    """Picture `[batch, 3, side, side]` to `image_tokens` `[batch, tokens, width]` and their `image_mask`."""

    def __init__(self, model: CrossModalVqaModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, pixel_values: Tensor) -> tuple[Tensor, Tensor]:
        tokens = self.model.encode_image(pixel_values)
        return tokens.features, tokens.mask.to(torch.int64)


class AnswerGraph(nn.Module):
    """Question and image tokens to logits and probabilities, `[batch, answers]`."""

    def __init__(self, model: CrossModalVqaModel) -> None:
        super().__init__()
        self.model = model
        encoder = model.text_encoder
        self.text_encoder = LstmGraph(encoder) if isinstance(encoder, LstmTextEncoder) else encoder

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor, image_tokens: Tensor, image_mask: Tensor
    ) -> tuple[Tensor, Tensor]:
        text = self.text_encoder(input_ids, attention_mask)
        logits = self.model.decide(text, Tokens(image_tokens, image_mask.bool()))
        return logits, logits.softmax(-1)


def _open(folder: Path) -> Source:
    checkpoint = load_checkpoint(folder)
    model = cast(CrossModalVqaModel, checkpoint.model)
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


def _image_role(model: CrossModalVqaModel) -> Role:
    image = model.config.image
    graph = ImageGraph(model)
    return Role(
        name="image_encoder",
        module=graph,
        reference=lambda pixel_values: graph(pixel_values),
        inputs=(TensorSpec("pixel_values", ("batch", 3, image.image_size_px, image.image_size_px), "normal"),),
        outputs=("image_tokens", "image_mask"),
        attends=image.layers > 0,
    )


def _classifier_role(model: CrossModalVqaModel) -> Role:
    config = model.config
    positions = config.image.side**2

    def reference(input_ids: Tensor, attention_mask: Tensor, features: Tensor, mask: Tensor) -> tuple[Tensor, ...]:
        logits = model.answer(input_ids, attention_mask, Tokens(features, mask.bool()))
        return logits, logits.softmax(-1)

    return Role(
        name="classifier",
        module=AnswerGraph(model),
        reference=reference,
        inputs=(
            TensorSpec("input_ids", ("batch", "length"), "token_ids", config.text.vocabulary),
            TensorSpec("attention_mask", ("batch", "length"), "mask"),
            TensorSpec("image_tokens", ("batch", positions, config.width), "normal"),
            TensorSpec("image_mask", ("batch", positions), "mask"),
        ),
        outputs=("logits", "probabilities"),
        longest=config.text.max_tokens,
        attends=_attends(config),
    )


def _attends(config: CrossModalVqaConfig) -> bool:
    """Whether the classifier holds the operator `Attention`: soft attention by products, past one level."""
    options = config.mechanism.options
    by_products = options.weighting == "soft" and options.similarity != "additive"
    return config.text.layers > 0 or (by_products and config.mechanism.name != "hierarchical")


XATTN_CROSS_MODAL = Family(
    name="xattn-edge vqa of any mechanism",
    recognises=lambda config: is_checkpoint(config, "vqa") and "mechanism" in config.get("model", ()),
    open=_open,
)
