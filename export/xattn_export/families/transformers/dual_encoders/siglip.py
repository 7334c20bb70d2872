"""SigLIP: image-text retrieval and zero-shot classification.

A ViT whose patches are pooled by attention, and a bidirectional text transformer, trained to say of every pair of a
image and a text whether the two belong together. https://arxiv.org/abs/2303.15343
The fixed-resolution models of SigLIP 2 are of the same architecture. https://arxiv.org/abs/2502.14786
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from tokenizers import Tokenizer
from torch import Tensor, nn

from xattn_export.families.base import Source, SourceTokenizer
from xattn_export.families.checkpoint_folder.classes import transformers_family
from xattn_export.families.checkpoint_folder.folder import load_model
from xattn_export.families.checkpoint_folder.json_files import read_json
from xattn_export.families.layers.clip import ClipLayer
from xattn_export.families.layers.common import attend, for_each_image, padding_mask
from xattn_export.families.layers.text.clip import ClipTextEncoder
from xattn_export.families.transformers.dual_encoders.common import dual_encoder_source
from xattn_runtime.bundle.manifest import Similarity
from xattn_runtime.errors import CheckpointError
from xattn_runtime.json_reader import show

if TYPE_CHECKING:
    from transformers import SiglipModel

__all__ = ["SIGLIP"]


class SiglipImageFeatures(nn.Module):
    """Image `[batch, 3, height, width]` to its pooled patches, `[batch, width]`."""

    def __init__(self, model: SiglipModel) -> None:
        super().__init__()
        vision = model.vision_model
        self.embeddings = vision.embeddings
        self.layers = nn.ModuleList(ClipLayer(layer) for layer in vision.encoder.layers)
        self.norm = vision.post_layernorm
        self.pool = SiglipPool(vision.head)

    def forward(self, pixel_values: Tensor) -> Tensor:
        patches = self.embeddings.patch_embedding(pixel_values).flatten(2).transpose(1, 2)
        tokens = patches + self.embeddings.position_embedding.weight
        for layer in self.layers:
            tokens = layer(tokens)
        return cast(Tensor, self.pool(self.norm(tokens)))


class SiglipPool(nn.Module):
    """States `[batch, tokens, width]` to `[batch, width]`: one learnt query attends to all of them."""

    def __init__(self, head: Any) -> None:
        super().__init__()
        attention, width = head.attention, head.attention.embed_dim
        self.heads = attention.num_heads
        weight, bias = attention.in_proj_weight, attention.in_proj_bias
        # The query is the same for every image, so it is projected once, here.
        self.query = nn.Parameter(nn.functional.linear(head.probe, weight[:width], bias[:width]), requires_grad=False)
        self.key_value = nn.Linear(width, 2 * width, device="meta")
        self.key_value.weight = nn.Parameter(weight[width:].detach(), requires_grad=False)
        self.key_value.bias = nn.Parameter(bias[width:].detach(), requires_grad=False)
        self.output = attention.out_proj
        self.norm = head.layernorm
        self.feed_forward = head.mlp

    def forward(self, tokens: Tensor) -> Tensor:
        key, value = self.key_value(tokens).chunk(2, -1)
        query = for_each_image(self.query, tokens)
        pooled = self.output(attend(query, key, value, self.heads))[:, 0]
        return cast(Tensor, pooled + self.feed_forward(self.norm(pooled)))


class SiglipTextFeatures(nn.Module):
    """Token ids, padding and all, to the projected state of the last position, `[batch, width]`."""

    def __init__(self, model: SiglipModel) -> None:
        super().__init__()
        self.text = ClipTextEncoder(model.text_model)
        self.projection = model.text_model.head

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        tokens = self.text(input_ids, padding_mask(attention_mask))
        return cast(Tensor, self.projection(tokens[:, -1]))


def _open(folder: Path) -> Source:
    from transformers import SiglipModel

    model, weights = load_model(folder, SiglipModel, unused=(r"\.position_ids$",))
    if not model.config.vision_config.vision_use_head:
        raise CheckpointError(
            f"{folder / 'config.json'}: vision_config.vision_use_head: expected a model that pools its patches, found "
            "false: it has no embedding of an image"
        )
    return dual_encoder_source(
        folder,
        model,
        weights,
        image_features=SiglipImageFeatures(model),
        text_features=SiglipTextFeatures(model),
        similarity=Similarity("sigmoid", scale=float(model.logit_scale.exp()), bias=float(model.logit_bias)),
        # It was trained on texts that are all of this length, and sees their padding.
        padded_with=partial(_pad_token_id, folder, model),
    )


def _pad_token_id(folder: Path, model: SiglipModel, tokenizer: SourceTokenizer) -> int:
    """The id of the token that fills texts up on the right, which the model must know."""
    path = folder / "tokenizer_config.json"
    settings = read_json(path)
    # The one class of its kind that pads on the left by default.
    usual = "left" if settings.get("tokenizer_class") == "Siglip2Tokenizer" else "right"
    if (side := settings.get("padding_side", usual)) != "right":
        raise CheckpointError(f"{path}: padding_side: expected right, as SigLIP was trained with, found {show(side)}")
    word = tokenizer.special.get("pad_token")
    token_id = Tokenizer.from_str(tokenizer.json).token_to_id(word) if word is not None else None
    if token_id is None or token_id >= model.config.text_config.vocab_size:
        raise CheckpointError(
            f"{folder}: expected a tokenizer with a padding token, which the model is given to the full length, found "
            f"{show(word)}; save the tokenizer into this folder"
        )
    return token_id


SIGLIP = transformers_family("SigLIP", _open, {"SiglipModel": "siglip"})
