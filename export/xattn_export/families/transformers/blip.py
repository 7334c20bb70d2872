"""BLIP: captioning, visual question answering by generation, and image-text retrieval.

An image encoder (ViT) and a text model with cross-attention, which decodes captions and answers, and encodes questions
and texts. https://arxiv.org/abs/2201.12086
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from xattn_edge.attention import KeyValue, split_heads
from xattn_edge.attention.caches import pairs
from xattn_export.families.base import Family, Generated, Generates, Role, Source, Symbol, key_value_specs
from xattn_export.families.base.standard_roles import decoder_role, image_encoder_role, text_encoder_role
from xattn_export.families.checkpoint_folder.caches import encoder_decoder_cache, presents
from xattn_export.families.checkpoint_folder.classes import transformers_family
from xattn_export.families.checkpoint_folder.decoding import decoding_of
from xattn_export.families.checkpoint_folder.folder import (
    license_of,
    load_model,
    name_of,
)
from xattn_export.families.checkpoint_folder.images import image_steps
from xattn_export.families.checkpoint_folder.reference import generated
from xattn_export.families.checkpoint_folder.tokenizer import source_tokenizer
from xattn_export.families.drawings import few_images
from xattn_export.families.layers.common import head, padding_mask
from xattn_export.families.layers.text.bert import BertLayer, BertTextEmbeddings, cross_projections
from xattn_export.families.layers.text.decoders import CrossDecoderGraph, CrossKeys, DecoderParts
from xattn_export.families.layers.vision.blip import BlipVisionEncoder
from xattn_export.families.transformers.blip_retrieval import open_retriever
from xattn_runtime.bundle.contract import cross_names, image_names
from xattn_runtime.bundle.manifest import Decoding

if TYPE_CHECKING:
    from transformers import BlipForQuestionAnswering
    from transformers.models.blip.modeling_blip_text import BlipTextModel

__all__ = ["BLIP"]


class BlipImageKeysGraph(nn.Module):
    """Image to the cross-attention keys and values of every layer of a text model."""

    def __init__(self, vision: Any, text: BlipTextModel) -> None:
        super().__init__()
        self.vision = BlipVisionEncoder(vision)
        self.cross = _cross_keys(text)

    def forward(self, pixel_values: Tensor) -> tuple[Tensor, ...]:
        return cast("tuple[Tensor, ...]", self.cross(self.vision(pixel_values)))


class BlipQuestionGraph(nn.Module):
    """Question and image keys and values to the cross-attention keys and values of the answer's decoder."""

    def __init__(self, model: BlipForQuestionAnswering) -> None:
        super().__init__()
        self.text = BlipTextGraph(model.text_encoder)
        self.cross = _cross_keys(model.text_decoder.bert)

    def forward(self, input_ids: Tensor, attention_mask: Tensor, *image: Tensor) -> tuple[Tensor, ...]:
        return cast("tuple[Tensor, ...]", self.cross(self.text(input_ids, attention_mask, pairs(image))))


class BlipTextGraph(nn.Module):
    """A text to the states of its tokens, attending to an image or to none."""

    def __init__(self, model: BlipTextModel) -> None:
        super().__init__()
        self.embeddings = BertTextEmbeddings(model)
        self.layers = nn.ModuleList(BertLayer(layer) for layer in model.encoder.layer)

    def forward(self, input_ids: Tensor, attention_mask: Tensor, image: list[KeyValue] | None = None) -> Tensor:
        tokens, mask = self.embeddings(input_ids), padding_mask(attention_mask)
        for number, layer in enumerate(self.layers):
            tokens = layer(tokens, mask, None if image is None else image[number])
        return cast(Tensor, tokens)


def _open_captioner(folder: Path) -> Source:
    from transformers import BlipForConditionalGeneration

    model, weights = load_model(folder, BlipForConditionalGeneration)
    decoder, side_px = model.text_decoder, _side_px(model)
    layers = model.config.text_config.num_hidden_layers
    decoding = _decoding(folder, model)
    tokens = model.vision_model.embeddings.num_positions

    def generate(pixel_values: Tensor, prompt_ids: tuple[int, ...]) -> Generated:
        prompt = torch.tensor([[*decoding.prompt_token_ids, *prompt_ids]])

        def forced_logits(token_ids: tuple[int, ...]) -> Tensor:
            ids = torch.cat((prompt, torch.tensor([token_ids], dtype=torch.int64)), 1)
            return cast(Tensor, model(pixel_values, ids).logits[0, prompt.shape[1] - 1 :])

        return generated(
            partial(model.generate, pixel_values, _with_end(prompt)),
            forced_logits,
            prompt_length=prompt.shape[1],
            end_token_ids=decoding.end_token_ids,
        )

    return Source(
        name=name_of(folder),
        task="caption",
        license=license_of(folder),
        weights=weights,
        roles=(
            _image_keys_role(model, decoder.bert, cross_names(layers)),
            _decoder_role(model, tokens),
        ),
        tokenizer=source_tokenizer(folder, _most_tokens(model), reads=False),
        reference=Generates(image_steps(folder, side_px, side_px), decoding, generate),
        golden_inputs=few_images("caption"),
    )


def _open_answerer(folder: Path) -> Source:
    from transformers import BlipForQuestionAnswering

    model, weights = load_model(folder, BlipForQuestionAnswering)
    side_px, layers = _side_px(model), model.config.text_config.num_hidden_layers
    decoding = _decoding(folder, model)

    def generate(pixel_values: Tensor, question_ids: tuple[int, ...]) -> Generated:
        question = torch.tensor([question_ids])

        def forced_logits(token_ids: tuple[int, ...]) -> Tensor:
            ids = torch.tensor([[*decoding.prompt_token_ids, *token_ids]])
            states = model.text_encoder(
                question,
                attention_mask=torch.ones_like(question),
                encoder_hidden_states=model.vision_model(pixel_values)[0],
            )
            return cast(Tensor, model.text_decoder(ids, encoder_hidden_states=states[0]).logits[0])

        return generated(
            partial(model.generate, question, pixel_values, torch.ones_like(question)),
            forced_logits,
            prompt_length=len(decoding.prompt_token_ids),
            end_token_ids=decoding.end_token_ids,
        )

    return Source(
        name=name_of(folder),
        task="vqa",
        license=license_of(folder),
        weights=weights,
        roles=(
            _image_keys_role(model, model.text_encoder, image_names(layers)),
            _question_role(model),
            _decoder_role(model, "context"),
        ),
        tokenizer=source_tokenizer(folder, _most_tokens(model)),
        reference=Generates(image_steps(folder, side_px, side_px), decoding, generate),
        golden_inputs=few_images("vqa"),
    )


def _image_keys_role(model: Any, text: BlipTextModel, outputs: list[str]) -> Role:
    attentions = _cross_attentions(text)

    def reference(pixel_values: Tensor) -> tuple[Tensor, ...]:
        return _keys_and_values(attentions, model.vision_model(pixel_values)[0])

    size_px = (_side_px(model), _side_px(model))
    return image_encoder_role(BlipImageKeysGraph(model.vision_model, text), reference, size_px, outputs)


def _question_role(model: BlipForQuestionAnswering) -> Role:
    config = model.config.text_config
    layers, heads = config.num_hidden_layers, config.num_attention_heads
    attentions = _cross_attentions(model.text_decoder.bert)
    tokens = model.vision_model.embeddings.num_positions

    def reference(input_ids: Tensor, attention_mask: Tensor, *image: Tensor) -> tuple[Tensor, ...]:
        states = model.text_encoder(
            input_ids,
            attention_mask=attention_mask,
            encoder_hidden_states=_known_states(config, image[0]),
            past_key_values=encoder_decoder_cache([], pairs(image)),
        )
        return _keys_and_values(attentions, states[0])

    return text_encoder_role(
        BlipQuestionGraph(model),
        reference,
        config.vocab_size,
        _most_tokens(model),
        cross_names(layers),
        key_value_specs("image", layers, heads, tokens, config.hidden_size // heads),
    )


def _decoder_graph(model: Any) -> CrossDecoderGraph:
    """A decoding step of a text decoder of BLIP."""
    crosses, config = _cross_attentions(model.bert), model.config
    return CrossDecoderGraph(
        DecoderParts(
            embeddings=BertTextEmbeddings(model.bert),
            layers=nn.ModuleList(BertLayer(layer) for layer in model.bert.encoder.layer),
            head=model.cls,
            cross=cross_projections(crosses),
            heads=config.num_attention_heads,
            longest=config.max_position_embeddings,
        )
    )


def _decoder_role(model: Any, cross_tokens: int | Symbol) -> Role:
    config, decoder = model.config.text_config, model.text_decoder
    layers, heads = config.num_hidden_layers, config.num_attention_heads

    def reference(input_ids: Tensor, *caches: Tensor) -> tuple[Tensor, ...]:
        past, cross = pairs(caches[: 2 * layers]), pairs(caches[2 * layers :])
        cache = encoder_decoder_cache(past, cross)
        logits = decoder(
            input_ids, encoder_hidden_states=_known_states(config, caches[-1]), past_key_values=cache, use_cache=True
        ).logits
        return *head(logits[:, -1]), *presents(cache)

    return decoder_role(
        _decoder_graph(decoder),
        reference,
        vocabulary=config.vocab_size,
        layers=layers,
        kv_heads=heads,
        head_width=config.hidden_size // heads,
        longest=config.max_position_embeddings,
        cross_heads=heads,
        cross_tokens=cross_tokens,
    )


def _cross_attentions(text: BlipTextModel) -> list[Any]:
    return [layer.crossattention.self for layer in text.encoder.layer]


def _cross_keys(text: BlipTextModel) -> CrossKeys:
    attentions = _cross_attentions(text)
    return CrossKeys(cross_projections(attentions), attentions[0].num_attention_heads)


def _keys_and_values(attentions: list[Any], states: Tensor) -> tuple[Tensor, ...]:
    """What each of the model's own cross-attentions makes of `states`, `key_0`, `value_0`, …"""
    heads = attentions[0].num_attention_heads
    return tuple(split_heads(part(states), heads) for each in attentions for part in (each.key, each.value))


def _known_states(config: Any, keys: Tensor) -> Tensor:
    """A placeholder for states whose keys and values are already in the cache: only its shape is used."""
    return torch.zeros(keys.shape[0], keys.shape[2], config.encoder_hidden_size)


def _decoding(folder: Path, model: Any) -> Decoding:
    """The settings of the text decoder: BLIP's own `generate()` passes none of the checkpoint's on to it."""
    config = model.config.text_config
    return decoding_of(
        folder / "config.json",
        model.text_decoder.generation_config.to_dict(),
        vocabulary=config.vocab_size,
        max_positions=config.max_position_embeddings,
        prompt_token_ids=(config.bos_token_id,),
        end_token_ids=(config.sep_token_id,),
        pad_token_id=config.pad_token_id,
    )


def _with_end(prompt: Tensor) -> Tensor:
    """A prompt as the tokenizer returns it, with a last token that `generate()` removes."""
    return F.pad(prompt, (0, 1))


def _side_px(model: Any) -> int:
    return int(model.vision_model.embeddings.image_size)


def _most_tokens(model: Any) -> int:
    return int(model.config.text_config.max_position_embeddings)


BLIP: tuple[Family, ...] = (
    transformers_family(
        "BLIP captioning", _open_captioner, {"BlipForConditionalGeneration": "blip"}, by_model_type=False
    ),
    transformers_family("BLIP VQA", _open_answerer, {"BlipForQuestionAnswering": "blip"}, by_model_type=False),
    transformers_family("BLIP retrieval", open_retriever, {"BlipForImageTextRetrieval": "blip"}, by_model_type=False),
)
