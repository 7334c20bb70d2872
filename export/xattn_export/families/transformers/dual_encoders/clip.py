"""CLIP: image-text retrieval and zero-shot classification.

A ViT and a causal text transformer, trained to agree by a softmax over the texts of an image.
https://arxiv.org/abs/2103.00020
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor, nn

from xattn_export.families.base import Source
from xattn_export.families.checkpoint_folder.classes import transformers_family
from xattn_export.families.checkpoint_folder.folder import load_model
from xattn_export.families.layers.common import padding_mask, places
from xattn_export.families.layers.text.clip import ClipTextEncoder
from xattn_export.families.layers.vision.clip import ClipVision
from xattn_export.families.transformers.dual_encoders.common import dual_encoder_source
from xattn_runtime.bundle.manifest import Similarity
from xattn_runtime.errors import CheckpointError
from xattn_runtime.json_reader import show

if TYPE_CHECKING:
    from transformers import CLIPModel

__all__ = ["CLIP"]

# Configurations of the first releases state 2, which is not the end token: there it is the highest id of the text.
_STATED_WRONGLY = 2


class ClipImageFeatures(nn.Module):
    """Image `[batch, 3, height, width]` to the projected state of the class token, `[batch, width]`."""

    def __init__(self, model: CLIPModel) -> None:
        super().__init__()
        vision = model.vision_model
        self.vision = ClipVision(vision)
        self.norm = vision.post_layernorm
        self.projection = model.visual_projection

    def forward(self, pixel_values: Tensor) -> Tensor:
        return cast(Tensor, self.projection(self.norm(self.vision(pixel_values)[:, 0])))


class ClipTextFeatures(nn.Module):
    """Token ids to the projected state of the end token, `[batch, width]`."""

    def __init__(self, model: CLIPModel, end_token_id: int | None) -> None:
        """`end_token_id`: None where it is the highest id of a text."""
        super().__init__()
        self.text = ClipTextEncoder(model.text_model)
        self.projection = model.text_projection
        self.end_token_id = end_token_id

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        numbers = places(input_ids)
        seen = padding_mask(attention_mask) & (numbers[None, :] <= numbers[:, None])
        tokens = self.text(input_ids, seen)
        # ArgMax takes the first of equals: padding may be of the end token, too.
        marks = input_ids if self.end_token_id is None else input_ids == self.end_token_id
        ends = marks.to(torch.int32).argmax(-1)[:, None, None].expand(-1, 1, tokens.shape[-1])
        return cast(Tensor, self.projection(tokens.gather(1, ends)[:, 0]))


def _open(folder: Path) -> Source:
    from transformers import CLIPModel

    model, weights = load_model(folder, CLIPModel, unused=(r"\.position_ids$",))
    text = model.config.text_config
    if not isinstance(text.eos_token_id, int):
        raise CheckpointError(
            f"{folder / 'config.json'}: text_config.eos_token_id: expected the id of the token that ends a text, found "
            f"{show(text.eos_token_id)}"
        )
    end_token_id = None if text.eos_token_id == _STATED_WRONGLY else text.eos_token_id
    return dual_encoder_source(
        folder,
        model,
        weights,
        image_features=ClipImageFeatures(model),
        text_features=ClipTextFeatures(model, end_token_id),
        similarity=Similarity("softmax", scale=float(model.logit_scale.exp())),
        ends_with=text.vocab_size - 1 if end_token_id is None else end_token_id,
    )


CLIP = transformers_family("CLIP", _open, {"CLIPModel": "clip"})
