"""BLIP-2 with OPT: captioning, with a prompt or without, and visual question answering with the question as a prompt.

An image encoder (ViT), a Q-Former whose learned queries find a few image tokens in what it gives, and a causal language
model that reads these tokens before the text. https://arxiv.org/abs/2301.12597
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn

from xattn_export.families.base import Family, Generated, Role, Source
from xattn_export.families.blip2_layers import OptEmbeddings, OptLayer, QueryEncoder
from xattn_export.families.blip_layers import VisionEncoder
from xattn_export.families.drawings import caption_pictures, question_pictures
from xattn_export.families.hf import has_architecture, load_model, source_facts
from xattn_export.families.hf_decoding import decoding_of
from xattn_export.families.hf_image_text import special_start, token_text, with_image_token
from xattn_export.families.hf_reference import generated
from xattn_export.families.hf_roles import (
    decoder_role,
    dynamic_cache,
    dynamic_presents,
    flatten,
    head,
    image_encoder_role,
    image_steps,
    pairs,
)
from xattn_export.families.hf_text import read_json
from xattn_runtime._reading import show
from xattn_runtime.errors import CheckpointError
from xattn_runtime.manifest import Task
from xattn_runtime.preprocess.tokenizer import ImageLayout

if TYPE_CHECKING:
    from transformers import Blip2ForConditionalGeneration

__all__ = ["BLIP2"]

_QUESTION = "Question: {question} Answer:"


class ImageTokensGraph(nn.Module):
    """Picture to the image tokens `[batch, queries, width]` that the language model reads."""

    def __init__(self, model: Blip2ForConditionalGeneration) -> None:
        super().__init__()
        self.vision = VisionEncoder(model.vision_model)
        self.queries = QueryEncoder(model.qformer, model.query_tokens)
        self.projection = model.language_projection

    def forward(self, pixel_values: Tensor) -> tuple[Tensor]:
        return (self.projection(self.queries(self.vision(pixel_values))),)


class DecoderGraph(nn.Module):
    """One decoding step: tokens after a cache, image tokens among them; logits of the last position alone."""

    def __init__(self, model: Any, placeholder: int) -> None:
        super().__init__()
        decoder = model.model.decoder
        self.embeddings = OptEmbeddings(decoder, placeholder)
        self.layers = nn.ModuleList(OptLayer(layer) for layer in decoder.layers)
        self.norm = decoder.final_layer_norm or nn.Identity()
        self.head = model.lm_head

    def forward(self, input_ids: Tensor, image_tokens: Tensor, *past: Tensor) -> tuple[Tensor, ...]:
        cache = pairs(past)
        tokens = self.embeddings(input_ids, image_tokens, cache[0].key.shape[2])
        present = []
        for layer, layer_past in zip(self.layers, cache, strict=True):
            tokens, layer_present = cast(OptLayer, layer).with_cache(tokens, layer_past)
            present.append(layer_present)
        return *head(self.head(self.norm(tokens[:, -1]))), *flatten(present)


def _open(task: Task, folder: Path) -> Source:
    from transformers import Blip2ForConditionalGeneration

    _refuse_other_text_models(folder)
    model, weights = load_model(folder, Blip2ForConditionalGeneration)
    placeholder, text = _placeholder(folder, model), model.config.text_config
    side_px = int(model.config.vision_config.image_size)
    decoding = decoding_of(folder, settings=model.language_model.generation_config.to_dict(), prompt_token_ids=())

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

    facts = source_facts(folder)
    tokenizer_json = facts["tokenizer_json"] = with_image_token(facts["tokenizer_json"], placeholder, folder)
    start = special_start(tokenizer_json, folder)
    queries = model.config.num_query_tokens
    return Source(
        **facts,
        task=task,
        weights=weights,
        roles=(_image_tokens_role(model, side_px), _decoder_role(model, placeholder)),
        image_steps=image_steps(folder, side_px, side_px),
        max_tokens=text.max_position_embeddings - queries - 1,
        pictures=caption_pictures if task == "caption" else question_pictures,
        decoding=decoding,
        question_template=f"{{image}}{start}{_QUESTION}",
        prompt_template=f"{{image}}{start}{{prompt}}",
        caption_template=f"{{image}}{token_text(tokenizer_json, text.bos_token_id, folder)}",
        image_layout=ImageLayout(token_text(tokenizer_json, placeholder, folder), queries, "{tokens}"),
        generate=generate,
    )


def _image_tokens_role(model: Blip2ForConditionalGeneration, side_px: int) -> Role:
    def reference(pixel_values: Tensor) -> tuple[Tensor]:
        return (model.get_image_features(pixel_values).pooler_output,)

    return image_encoder_role(ImageTokensGraph(model), reference, (side_px, side_px), ("image_tokens",))


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
        DecoderGraph(model.language_model, placeholder),
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


def _refuse_other_text_models(folder: Path) -> None:
    """Before the weights are read: they may be many."""
    path = folder / "config.json"
    text = read_json(path).get("text_config") or {}
    if (found := text.get("model_type", "opt")) != "opt":
        raise CheckpointError(
            f"{path}: text_config.model_type: expected 'opt', found {show(found)}; of BLIP-2, the models with OPT can "
            "be exported"
        )
    width, words = text.get("hidden_size"), text.get("word_embed_proj_dim")
    if words not in (None, width):
        raise CheckpointError(
            f"{path}: text_config.word_embed_proj_dim: expected hidden_size, which is {show(width)}, found "
            f"{show(words)}: image tokens have no place among words of another width"
        )


def _placeholder(folder: Path, model: Blip2ForConditionalGeneration) -> int:
    found = model.config.image_token_index
    if found is None or not 0 <= found < model.config.text_config.vocab_size:
        raise CheckpointError(
            f"{folder / 'config.json'}: image_token_index: expected the token that stands for an image token, one of "
            f"{model.config.text_config.vocab_size}, found {show(found)}; the processor calls it <image>"
        )
    return int(found)


BLIP2: tuple[Family, ...] = (
    Family(
        "BLIP-2",
        lambda config: has_architecture(config, "Blip2ForConditionalGeneration"),
        partial(_open, "caption"),
        also={"vqa": partial(_open, "vqa")},
    ),
)
