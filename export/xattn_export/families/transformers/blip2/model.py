"""BLIP-2: captioning, with a prompt or without, and visual question answering with the question as a prompt.

An image encoder (ViT), a Q-Former whose learned queries extract a few image tokens from its output, and a language
model that reads these tokens before the text. https://arxiv.org/abs/2301.12597
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING

from tokenizers import Tokenizer
from torch import Tensor

from xattn_export.families.base import Family, Generates, Role, Source
from xattn_export.families.base.standard_roles import image_encoder_role
from xattn_export.families.checkpoint_folder.classes import transformers_family
from xattn_export.families.checkpoint_folder.folder import license_of, load_model, name_of
from xattn_export.families.checkpoint_folder.images import image_steps
from xattn_export.families.checkpoint_folder.json_files import read_json
from xattn_export.families.checkpoint_folder.tokenizer import tokenizer_json_of
from xattn_export.families.drawings import few_images
from xattn_export.families.layers.connectors.table import CONNECTORS
from xattn_export.families.layers.towers.table import patches_across, tower_of
from xattn_export.families.transformers.blip2.language import Language
from xattn_export.families.transformers.blip2.opt import opt_language
from xattn_export.families.transformers.blip2.t5 import t5_language
from xattn_export.families.transformers.vision_language.graphs import ImageGraph
from xattn_runtime.bundle.manifest import TaskName
from xattn_runtime.errors import CheckpointError
from xattn_runtime.json_reader import show

if TYPE_CHECKING:
    from transformers import Blip2ForConditionalGeneration

__all__ = ["BLIP2"]

_IMAGE = "<image>"
_LANGUAGES: Mapping[str, Callable[[Path, Blip2ForConditionalGeneration], Language]] = MappingProxyType(
    {"opt": opt_language, "t5": t5_language}
)


def _open(task: TaskName, folder: Path) -> Source:
    from transformers import Blip2ForConditionalGeneration

    language_of = _LANGUAGES[_text_model(folder)]
    _check_image_token(folder)
    model, weights = load_model(folder, Blip2ForConditionalGeneration)
    side_px = int(model.config.vision_config.image_size)
    language = language_of(folder, model)
    return Source(
        name=name_of(folder),
        task=task,
        license=license_of(folder),
        weights=weights,
        roles=(_image_tokens_role(model, side_px), *language.roles),
        tokenizer=language.tokenizer,
        reference=Generates(image_steps(folder, side_px, side_px), language.decoding, language.generate),
        golden_inputs=few_images(task),
    )


def _image_tokens_role(model: Blip2ForConditionalGeneration, side_px: int) -> Role:
    def reference(pixel_values: Tensor) -> tuple[Tensor]:
        return (model.get_image_features(pixel_values).pooler_output,)

    tower = tower_of(model.vision_model, side_px)
    connector = CONNECTORS["blip-2"].build(model, patches_across(model.config.vision_config, side_px))
    return image_encoder_role(ImageGraph(tower, connector), reference, (side_px, side_px), ("image_tokens",))


def _check_image_token(folder: Path) -> None:
    """CheckpointError that says what to write, where config.json does not say which token stands for the image."""
    path = folder / "config.json"
    if read_json(path).get("image_token_index") is not None:
        return
    tokenizer = Tokenizer.from_str(tokenizer_json_of(folder))
    token_id = tokenizer.token_to_id(_IMAGE)
    number = tokenizer.get_vocab_size() if token_id is None else token_id
    raise CheckpointError(
        f"{path}: image_token_index: expected the id of the token {_IMAGE}, found none; write "
        f'"image_token_index": {number}, the id that {_IMAGE} has in the tokenizer or gets as its next token'
    )


def _text_model(folder: Path) -> str:
    """The language model's type, looked at before the weights are read: they may be many."""
    path = folder / "config.json"
    stated = read_json(path).get("text_config")
    text = stated if isinstance(stated, dict) else {}
    kind = text.get("model_type", "opt")
    if not isinstance(kind, str) or kind not in _LANGUAGES:
        raise CheckpointError(
            f"{path}: text_config.model_type: expected {' or '.join(_LANGUAGES)}, found {show(kind)}; BLIP-2 with "
            "other language models cannot be exported yet"
        )
    width, words = text.get("hidden_size"), text.get("word_embed_proj_dim")
    if words not in (None, width):
        raise CheckpointError(
            f"{path}: text_config.word_embed_proj_dim: expected hidden_size, which is {show(width)}, found "
            f"{show(words)}: image tokens have no place among words of another width"
        )
    layers, decoder_layers = text.get("num_layers"), text.get("num_decoder_layers")
    if kind == "t5" and decoder_layers not in (None, layers):
        raise CheckpointError(
            f"{path}: text_config.num_decoder_layers: expected num_layers, which is {show(layers)}, found "
            f"{show(decoder_layers)}; T5 with an encoder and a decoder of unlike depth cannot be exported yet"
        )
    return kind


BLIP2: tuple[Family, ...] = (
    transformers_family(
        "BLIP-2",
        partial(_open, "caption"),
        {"Blip2ForConditionalGeneration": "blip-2"},
        also={"vqa": partial(_open, "vqa")},
    ),
)
