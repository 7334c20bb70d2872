"""Idefics3 and SmolVLM: visual question answering, and captioning, by a language model that reads image tokens.

An image is cut into tiles. An image encoder (SigLIP's) and a connector make a few tokens of each, which stand in the
text between its words; a decoder of the Llama kind continues it. https://arxiv.org/abs/2408.12637,
https://arxiv.org/abs/2504.05299
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any, NoReturn, cast

import torch
from torch import Tensor, nn

from xattn_edge.attention.caches import pairs
from xattn_export.families.base import Family, Generated, Generates, Role, Source
from xattn_export.families.base.standard_roles import decoder_role, image_encoder_role
from xattn_export.families.checkpoint_folder.caches import dynamic_cache, dynamic_presents
from xattn_export.families.checkpoint_folder.classes import class_of, transformers_family
from xattn_export.families.checkpoint_folder.decoding import decoding_of
from xattn_export.families.checkpoint_folder.folder import (
    generation_file,
    license_of,
    load_model,
    name_of,
)
from xattn_export.families.checkpoint_folder.images import image_steps_of
from xattn_export.families.checkpoint_folder.json_files import read_json
from xattn_export.families.checkpoint_folder.reference import generated
from xattn_export.families.checkpoint_folder.tokenizer import source_tokenizer
from xattn_export.families.drawings import row_images
from xattn_export.families.layers.common import embed_with_image, head
from xattn_export.families.layers.language.table import check_language_model, language_decoder
from xattn_export.families.layers.vision.idefics3 import Idefics3ImageTokens
from xattn_export.families.transformers.idefics3_prompt import tokenizer_with_images
from xattn_runtime.bundle.manifest import TaskName
from xattn_runtime.errors import CheckpointError
from xattn_runtime.json_reader import show
from xattn_runtime.preprocess.pipeline import Pipeline

__all__ = ["IDEFICS3"]

_CLASSES = {"Idefics3ForConditionalGeneration": "idefics3", "SmolVLMForConditionalGeneration": "smolvlm"}
# Rotary positions are computed, not looked up: up to here a comparison sees what there is to see.
_COMPARED_POSITIONS = 1024


class Idefics3DecoderGraph(nn.Module):
    """One decoding step: tokens after a cache, image tokens in their places; logits of the last position alone."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.words = model.model.text_model.embed_tokens
        self.decoder = language_decoder(model.model.text_model)
        self.head = model.lm_head
        self.placeholder = int(model.config.image_token_id)

    def forward(self, input_ids: Tensor, image_tokens: Tensor, *past: Tensor) -> tuple[Tensor, ...]:
        tokens = embed_with_image(input_ids, image_tokens, self.words, self.placeholder, past[0].shape[2])
        tokens, present = self.decoder.step(tokens, past)
        return *head(self.head(tokens[:, -1])), *present


def _open(task: TaskName, folder: Path) -> Source:
    import transformers

    config = read_json(folder / "config.json")
    model_class = getattr(transformers, cast(str, class_of(config, _CLASSES)))
    model, weights = load_model(folder, model_class, unused=(r"\.position_ids$", r"\.rotary_emb\.inv_freq$"))
    check_language_model(folder / "config.json", model.config.text_config, only=("llama",))
    steps = image_steps_of(folder)
    pipeline = Pipeline(steps)
    side_px = pipeline.size_px[0]
    tokens = _tokens_of_a_tile(folder, model, side_px)
    positions = model.config.text_config.max_position_embeddings
    tokenizer, video_steps = tokenizer_with_images(
        folder, source_tokenizer(folder, positions - tokens - 1), tokens, steps, model.config
    )
    decoding = decoding_of(
        generation_file(folder),
        model.generation_config.to_dict(),
        vocabulary=model.config.text_config.vocab_size,
        max_positions=positions,
        prompt_token_ids=(),
    )

    def generate(pixel_values: Tensor, prompt_ids: tuple[int, ...]) -> Generated:
        prompt = torch.tensor([prompt_ids])
        features = model.get_image_features(pixel_values if pipeline.tiled else pixel_values[:, None]).pooler_output

        def forced_logits(token_ids: tuple[int, ...]) -> Tensor:
            ids = torch.cat((prompt, torch.tensor([token_ids], dtype=torch.int64)), 1)
            image, count = _image_outputs(features), len(token_ids) + 1
            return cast(Tensor, model(ids, mm_encoder_outputs=image, use_cache=False, logits_to_keep=count).logits[0])

        def generate(**settings: Any) -> Any:
            # An object of its own for each call: beam search repeats the rows of what it is given in place.
            image = _image_outputs(features)
            return model.generate(prompt, attention_mask=torch.ones_like(prompt), mm_encoder_outputs=image, **settings)

        return generated(
            generate,
            forced_logits,
            prompt_length=prompt.shape[1],
            end_token_ids=decoding.end_token_ids,
        )

    return Source(
        name=name_of(folder),
        task=task,
        license=license_of(folder),
        weights=weights,
        roles=(_image_role(model, side_px), _decoder_role(model)),
        tokenizer=tokenizer,
        reference=Generates(steps, decoding, generate, video_steps),
        golden_inputs=row_images(task),
    )


def _image_role(model: Any, side_px: int) -> Role:
    def reference(pixel_values: Tensor) -> tuple[Tensor, ...]:
        return (torch.stack(model.get_image_features(pixel_values[:, None]).pooler_output),)

    return image_encoder_role(
        Idefics3ImageTokens(model.model, side_px), reference, (side_px, side_px), ("image_tokens",)
    )


def _image_outputs(features: Any) -> dict[str, Any]:
    """Image tokens as the model takes them where they are known, tile by tile."""
    from transformers.modeling_outputs import BaseModelOutputWithPooling

    return {"image": BaseModelOutputWithPooling(pooler_output=features)}


def _decoder_role(model: Any) -> Role:
    config, placeholder = model.config.text_config, int(model.config.image_token_id)

    def reference(input_ids: Tensor, image_tokens: Tensor, *past: Tensor) -> tuple[Tensor, ...]:
        cache = dynamic_cache(pairs(past))
        # After a cache, a placeholder is a token like others.
        is_read = not past[0].shape[2] and bool((input_ids == placeholder).any())
        image = _image_outputs(list(image_tokens)) if is_read else None
        output = model(input_ids, past_key_values=cache, use_cache=True, logits_to_keep=1, mm_encoder_outputs=image)
        return *head(output.logits[:, -1]), *dynamic_presents(cache)

    return decoder_role(
        Idefics3DecoderGraph(model),
        reference,
        vocabulary=config.vocab_size,
        layers=config.num_hidden_layers,
        kv_heads=config.num_key_value_heads,
        head_width=config.head_dim,
        longest=min(config.max_position_embeddings, _COMPARED_POSITIONS),
        image_width=config.hidden_size,
        placeholder=placeholder,
    )


def _tokens_of_a_tile(folder: Path, model: Any, side_px: int) -> int:
    """How many image tokens the model makes of a tile; CheckpointError where it can make none of one of this side."""
    vision, factor = model.config.vision_config, int(model.config.scale_factor)

    def fail(key: str, expected: str, value: object) -> NoReturn:
        raise CheckpointError(f"{folder / 'config.json'}: {key}: expected {expected}, found {show(value)}")

    if not isinstance(vision.patch_size, int) or not isinstance(vision.image_size, int):
        fail("vision_config.patch_size, image_size", "a number of pixels", (vision.patch_size, vision.image_size))
    patches = side_px // vision.patch_size
    if patches < 1 or patches % factor:
        fail("scale_factor", f"a divisor of the {patches} patches across a tile of {side_px} pixels", factor)
    return (patches // factor) ** 2


IDEFICS3: tuple[Family, ...] = (
    transformers_family(
        "Idefics3, SmolVLM",
        partial(_open, "vqa"),
        _CLASSES,
        also={"caption": partial(_open, "caption")},
    ),
)
