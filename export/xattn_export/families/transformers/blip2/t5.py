"""BLIP-2's language model where it is T5: an encoder that reads the image tokens before those of the text, and a
decoder that attends to what it makes of both.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn

from xattn_edge.attention.caches import pairs
from xattn_export.families.base import Generated, Role, TensorSpec
from xattn_export.families.base.standard_roles import decoder_role, text_encoder_role
from xattn_export.families.checkpoint_folder.caches import cross_presents, encoder_decoder_cache, presents
from xattn_export.families.checkpoint_folder.decoding import decoding_of
from xattn_export.families.checkpoint_folder.image_text import special_around, token_text
from xattn_export.families.checkpoint_folder.reference import generated
from xattn_export.families.checkpoint_folder.tokenizer import source_tokenizer
from xattn_export.families.layers.common import fuse_linears, head
from xattn_export.families.layers.text.decoders import CrossKeys
from xattn_export.families.layers.text.prompt import PromptGraph, mask_with_image
from xattn_export.families.layers.text.t5 import T5DecoderGraph, T5Encoder
from xattn_export.families.transformers.blip2.language import QUESTION, Language, text_token
from xattn_runtime.bundle.contract import cross_names

if TYPE_CHECKING:
    from transformers import Blip2ForConditionalGeneration, T5ForConditionalGeneration

__all__ = ["t5_language"]

# T5 has positions without end; of these it was trained on so many.
_LONGEST = 512


def t5_language(folder: Path, model: Blip2ForConditionalGeneration) -> Language:
    """The language model of `model`, with the tokenizer in `folder`.

    Raises:
        CheckpointError: a setting that cannot be obeyed, or a tokenizer of another model.
    """
    queries, text = model.config.num_query_tokens, model.config.text_config
    placeholder = text_token(folder, model, "image_token_index", model.config.image_token_index)
    begin = text_token(folder, model, "text_config.bos_token_id", text.bos_token_id)
    settings = cast(Any, model.language_model).generation_config.to_dict()
    decoding = decoding_of(folder / "config.json", settings, vocabulary=text.vocab_size, max_positions=_LONGEST)
    start = torch.tensor([decoding.prompt_token_ids])

    def generate(pixel_values: Tensor, prompt_ids: tuple[int, ...]) -> Generated:
        prompt = torch.tensor([[*[placeholder] * queries, *prompt_ids]])

        def forced_logits(token_ids: tuple[int, ...]) -> Tensor:
            ids = torch.cat((start, torch.tensor([token_ids], dtype=torch.int64)), 1)
            return cast(Tensor, model(pixel_values=pixel_values, input_ids=prompt, decoder_input_ids=ids).logits[0])

        return generated(
            partial(model.generate, pixel_values, prompt, torch.ones_like(prompt)),
            forced_logits,
            prompt_length=start.shape[1],
            end_token_ids=decoding.end_token_ids,
        )

    tokenizer = source_tokenizer(folder, _LONGEST - queries)
    before, after = special_around(tokenizer.json, folder)
    spec = replace(
        tokenizer.spec,
        # A question gets the tokenizer's special tokens; a prompt gets those that are written here.
        question_template=QUESTION,
        prompt_template=f"{before}{{prompt}}{after}",
        caption_template=token_text(tokenizer.json, begin, folder),
    )
    roles = (_prompt_role(model.language_model, queries), _decoder_role(model.language_model))
    return Language(roles, replace(tokenizer, spec=spec), decoding, generate)


def _prompt_graph(model: T5ForConditionalGeneration) -> PromptGraph:
    crosses = [cast(Any, block).layer[1].EncDecAttention for block in model.decoder.block]
    projections = nn.ModuleList(fuse_linears(cross.k, cross.v) for cross in crosses)
    return PromptGraph(model.shared, T5Encoder(model.encoder), CrossKeys(projections, crosses[0].n_heads))


def _prompt_role(language: Any, queries: int) -> Role:
    config = language.config

    def reference(input_ids: Tensor, attention_mask: Tensor, image_tokens: Tensor) -> tuple[Tensor, ...]:
        """The keys and values that the decoder itself puts into its cache."""
        embedded = torch.cat((image_tokens, language.get_input_embeddings()(input_ids)), 1)
        mask = mask_with_image(attention_mask, image_tokens)
        states = language.encoder(inputs_embeds=embedded, attention_mask=mask)[0]
        first = torch.zeros(input_ids.shape[0], 1, dtype=torch.int64)
        outputs = language.decoder(first, encoder_hidden_states=states, use_cache=True)
        return cross_presents(outputs.past_key_values)

    return text_encoder_role(
        _prompt_graph(language),
        reference,
        config.vocab_size,
        _LONGEST - queries,
        cross_names(config.num_decoder_layers),
        (TensorSpec("image_tokens", ("batch", queries, config.d_model), "normal"),),
    )


def _decoder_role(language: Any) -> Role:
    config, layers = language.config, language.config.num_decoder_layers

    def reference(input_ids: Tensor, *caches: Tensor) -> tuple[Tensor, ...]:
        cache = encoder_decoder_cache(pairs(caches[: 2 * layers]), pairs(caches[2 * layers :]))
        # A placeholder for states whose keys and values are already in the cache: only its shape is used.
        states = torch.zeros(input_ids.shape[0], caches[-1].shape[2], config.d_model)
        outputs = language(
            encoder_outputs=(states,), decoder_input_ids=input_ids, past_key_values=cache, use_cache=True
        )
        return *head(outputs.logits[:, -1]), *presents(cache)

    return decoder_role(
        T5DecoderGraph(language),
        reference,
        vocabulary=config.vocab_size,
        layers=layers,
        kv_heads=config.num_heads,
        head_width=config.d_kv,
        longest=_LONGEST,
        cross_heads=config.num_heads,
        cross_tokens="context",
    )
