"""BLIP-2's language model where it is OPT: a decoder that reads the image tokens before those of the text."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor

from xattn_edge.attention.caches import pairs
from xattn_export.families.base import Generated, Role
from xattn_export.families.base.standard_roles import decoder_role
from xattn_export.families.checkpoint_folder.caches import dynamic_cache, dynamic_presents
from xattn_export.families.checkpoint_folder.decoding import decoding_of
from xattn_export.families.checkpoint_folder.image_text import special_around, token_text, with_image_token
from xattn_export.families.checkpoint_folder.reference import generated
from xattn_export.families.checkpoint_folder.tokenizer import source_tokenizer
from xattn_export.families.layers.common import head
from xattn_export.families.layers.text.opt import OptDecoderGraph
from xattn_export.families.transformers.blip2.language import QUESTION, Language, text_token
from xattn_runtime.errors import CheckpointError
from xattn_runtime.json_reader import show
from xattn_runtime.preprocess.tokenizer import ImageLayout

if TYPE_CHECKING:
    from transformers import Blip2ForConditionalGeneration

__all__ = ["opt_language"]


def opt_language(folder: Path, model: Blip2ForConditionalGeneration) -> Language:
    """The language model of `model`, with the tokenizer in `folder`.

    Raises:
        CheckpointError: a setting that cannot be obeyed, or a tokenizer of another model.
    """
    queries, text = model.config.num_query_tokens, model.config.text_config
    placeholder = text_token(folder, model, "image_token_index", model.config.image_token_index)
    begin = text_token(folder, model, "text_config.bos_token_id", text.bos_token_id)
    settings = cast(Any, model.language_model).generation_config.to_dict()
    decoding = decoding_of(
        folder / "config.json",
        settings,
        vocabulary=text.vocab_size,
        max_positions=text.max_position_embeddings,
        prompt_token_ids=(),
    )

    def generate(pixel_values: Tensor, prompt_ids: tuple[int, ...]) -> Generated:
        prompt = torch.tensor([prompt_ids])

        def forced_logits(token_ids: tuple[int, ...]) -> Tensor:
            ids = torch.cat((prompt, torch.tensor([token_ids], dtype=torch.int64)), 1)
            logits = model(pixel_values=pixel_values, input_ids=ids).logits[0]
            return cast(Tensor, logits[prompt.shape[1] - 1 :])

        return generated(
            partial(model.generate, pixel_values, prompt, torch.ones_like(prompt)),
            forced_logits,
            prompt_length=prompt.shape[1],
            end_token_ids=decoding.end_token_ids,
        )

    tokenizer = source_tokenizer(folder, text.max_position_embeddings - queries - 1)
    tokenizer_json = with_image_token(tokenizer.json, placeholder, folder)
    before, after = special_around(tokenizer_json, folder)
    if after:
        raise CheckpointError(
            f"{folder}: expected a tokenizer that puts special tokens before a text alone, found {show(after)} after "
            "it, from where OPT would have to go on"
        )
    spec = replace(
        tokenizer.spec,
        question_template=f"{{image}}{before}{QUESTION}",
        prompt_template=f"{{image}}{before}{{prompt}}",
        caption_template=f"{{image}}{token_text(tokenizer_json, begin, folder)}",
        image_layout=ImageLayout(token_text(tokenizer_json, placeholder, folder), queries, "{tokens}"),
    )
    return Language(
        (_decoder_role(model, placeholder),), replace(tokenizer, json=tokenizer_json, spec=spec), decoding, generate
    )


def _decoder_role(model: Blip2ForConditionalGeneration, placeholder: int) -> Role:
    config = model.config.text_config

    def reference(input_ids: Tensor, image_tokens: Tensor, *past: Tensor) -> tuple[Tensor, ...]:
        cache = dynamic_cache(pairs(past))
        if past[0].shape[2]:
            logits = model.language_model(input_ids, past_key_values=cache, use_cache=True).logits
        else:
            image = _image_features(image_tokens)
            logits = model(None, input_ids, mm_encoder_outputs=image, past_key_values=cache, use_cache=True).logits
        return *head(logits[:, -1]), *dynamic_presents(cache)

    return decoder_role(
        OptDecoderGraph(model.language_model, placeholder),
        reference,
        vocabulary=config.vocab_size,
        layers=config.num_hidden_layers,
        kv_heads=config.num_attention_heads,
        head_width=config.hidden_size // config.num_attention_heads,
        longest=config.max_position_embeddings,
        image_width=config.hidden_size,
        placeholder=placeholder,
    )


def _image_features(image_tokens: Tensor) -> dict[str, Any]:
    """Image tokens as the model's `forward` takes them where they are known."""
    from transformers.models.blip_2.modeling_blip_2 import BaseModelOutputWithVisionQformerOutputs

    return {"image": BaseModelOutputWithVisionQformerOutputs(pooler_output=image_tokens)}
