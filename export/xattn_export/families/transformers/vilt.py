"""ViLT: visual question answering by choosing among answers.

One transformer reads the words of the question and the patches of the image together. What depends on the image
alone, its patches with their positions, is the image encoder; the transformer is the classifier.
https://arxiv.org/abs/2102.03334
"""

from __future__ import annotations

import io
from pathlib import Path
from typing import TYPE_CHECKING, cast

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from xattn_export.families.base import Chooses, Family, GoldenInput, Role, Source, TensorSpec
from xattn_export.families.base.standard_roles import classifier_role, image_token_specs, text_specs
from xattn_export.families.checkpoint_folder.classes import transformers_family
from xattn_export.families.checkpoint_folder.folder import (
    license_of,
    load_model,
    name_of,
)
from xattn_export.families.checkpoint_folder.images import image_steps_of
from xattn_export.families.checkpoint_folder.tokenizer import source_tokenizer
from xattn_export.families.drawings import question_images
from xattn_export.families.layers.vision.vilt import ViltAnswerGraph, ViltCanvas, ViltPatchGraph
from xattn_export.families.transformers.answer_labels import answer_labels
from xattn_runtime.errors import CheckpointError
from xattn_runtime.preprocess.steps import Normalize, PadZeros, Rescale, ResizeToMultiple, Step

if TYPE_CHECKING:
    from transformers import ViltConfig, ViltForQuestionAnswering

__all__ = ["VILT"]

# Height and width of the images that the graphs are tried with, in one proportion each.
_SHAPES_PX = ((96, 64), (64, 96), (80, 80), (32, 128))


def _open(folder: Path) -> Source:
    from transformers import ViltForQuestionAnswering

    model, weights = load_model(folder, ViltForQuestionAnswering)
    config, steps = model.config, image_steps_of(folder)
    labels = answer_labels(folder, config.num_labels)
    resize = _resize(folder, steps)
    canvas = _canvas(folder, config, steps, resize)

    def answer_logits(pixel_values: Tensor, question_ids: tuple[int, ...]) -> Tensor:
        question, image = torch.tensor([question_ids]), _cut_out(pixel_values)
        logits = model(question, torch.ones_like(question), pixel_values=image, pixel_mask=_full_mask(image)).logits
        return cast(Tensor, logits[0])

    return Source(
        name=name_of(folder),
        task="vqa",
        license=license_of(folder),
        weights=weights,
        roles=(_image_role(model, canvas, resize), _answer_role(model, canvas)),
        tokenizer=source_tokenizer(folder, config.max_position_embeddings, writes=False),
        reference=Chooses(steps, labels, answer_logits),
        golden_inputs=_golden_inputs(),
    )


def _image_role(model: ViltForQuestionAnswering, canvas: ViltCanvas, resize: ResizeToMultiple) -> Role:
    embeddings = model.vilt.embeddings

    def reference(pixel_values: Tensor) -> tuple[Tensor, Tensor]:
        tokens = torch.zeros(pixel_values.shape[0], canvas.tokens, model.config.hidden_size)
        mask = torch.zeros(tokens.shape[:2], dtype=torch.int64)
        for row, one in enumerate(pixel_values[:, None]):
            image = _cut_out(one)
            # Upstream returns the patches of an image in random order, with their places.
            embedded, _, (places, (_, width)) = embeddings.visual_embed(image, _full_mask(image), max_image_length=-1)
            order = (places[0] @ torch.tensor([width, 1])).argsort()
            length = embedded.shape[1]
            tokens[row, 0], tokens[row, 1:length], mask[row, :length] = embedded[0, 0], embedded[0, 1:][order], 1
        return tokens, mask

    sizes_px = tuple(resize.size_of(size) for size in _SHAPES_PX)
    pixel_values = TensorSpec("pixel_values", ("batch", 3, *canvas.size_px), "image", sizes_px=sizes_px)
    outputs = ("image_tokens", "image_mask")
    return Role("image_encoder", ViltPatchGraph(model, canvas), reference, (pixel_values,), outputs, attends=False)


def _answer_role(model: ViltForQuestionAnswering, canvas: ViltCanvas) -> Role:
    config = model.config

    def reference(input_ids: Tensor, attention_mask: Tensor, tokens: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        logits = model(input_ids, attention_mask, image_embeds=tokens, pixel_mask=mask).logits
        return logits, logits.sigmoid()

    inputs = (*text_specs(config.vocab_size), *image_token_specs(canvas.tokens, config.hidden_size))
    return classifier_role(ViltAnswerGraph(model), reference, inputs, config.max_position_embeddings)


def _cut_out(pixel_values: Tensor) -> Tensor:
    """The image `[1, 3, height, width]` on a canvas of zeros."""
    filled = (pixel_values != 0).any(1)[0]
    return pixel_values[:, :, : int(filled.any(1).sum()), : int(filled.any(0).sum())]


def _full_mask(image: Tensor) -> Tensor:
    """A pixel mask of an image that has no padding."""
    return torch.ones(image.shape[0], *image.shape[2:], dtype=torch.int64)


def _golden_inputs() -> tuple[GoldenInput, ...]:
    """Question images in several proportions."""
    inputs = []
    for (height, width), image in zip(_SHAPES_PX, question_images(), strict=True):
        stream = io.BytesIO()
        Image.open(io.BytesIO(image.content)).resize((width, height)).save(stream, "PNG")
        inputs.append(GoldenInput(stream.getvalue(), image.texts))
    return tuple(inputs)


def _resize(folder: Path, steps: tuple[Step, ...]) -> ResizeToMultiple:
    for step in steps:
        if isinstance(step, ResizeToMultiple):
            return step
    raise CheckpointError(
        f"{folder}: expected the image processor of ViLT, which resizes to multiples of a patch, found "
        f"{', '.join(step.op for step in steps)}"
    )


def _canvas(folder: Path, config: ViltConfig, steps: tuple[Step, ...], resize: ResizeToMultiple) -> ViltCanvas:
    """What the processor gives, in patches; CheckpointError where a graph cannot compute what the model does of it."""
    patch_px, side_px = config.patch_size, next(step.height_px for step in steps if isinstance(step, PadZeros))
    if not isinstance(patch_px, int) or not isinstance(config.image_size, int):
        raise CheckpointError(
            f"{folder / 'config.json'}: image_size, patch_size: expected a number each, found {config.image_size} and "
            f"{patch_px}; images and patches must be squares"
        )
    if resize.multiple_px % patch_px:
        raise CheckpointError(
            f"{folder}: size_divisor: expected a multiple of the model's patch_size {patch_px}, found "
            f"{resize.multiple_px}; the two must agree"
        )
    shortest, longest = (
        side // resize.multiple_px * resize.multiple_px // patch_px for side in (resize.shortest_px, resize.longest_px)
    )
    if 0 <= config.max_image_length < shortest * longest:
        raise CheckpointError(
            f"{folder / 'config.json'}: max_image_length: expected -1, or at least {shortest * longest}, the patches "
            f"of the largest image, found {config.max_image_length}; a random choice of patches cannot be exported"
        )
    if all(_can_be_zero(steps, channel) for channel in range(3)):
        raise CheckpointError(
            f"{folder}: image_mean, image_std: expected a normalisation that makes no color zero, found one that does; "
            "zeros are what stands beside an image"
        )
    return ViltCanvas(side_px, patch_px, shortest * longest)


def _can_be_zero(steps: tuple[Step, ...], channel: int) -> bool:
    values = np.arange(256, dtype=np.float64)
    for step in steps:
        if isinstance(step, Rescale):
            values = (values * step.factor).astype(np.float32)
        elif isinstance(step, Normalize):
            values = (values - np.float32(step.mean[channel])) / np.float32(step.std[channel])
    return bool((values == 0).any())


VILT: tuple[Family, ...] = (transformers_family("ViLT VQA", _open, {"ViltForQuestionAnswering": "vilt"}),)
