"""Florence-2: captioning, text recognition and question answering, by prompts.

An image encoder (DaViT) outputs image tokens; BART's encoder reads them and a prompt in one sequence, and BART's
decoder attends to what it makes of both. https://arxiv.org/abs/2311.06242
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn

from xattn_edge.attention.caches import pairs
from xattn_export.families.base import Generated, Generates, Role, Source, TensorSpec
from xattn_export.families.base.standard_roles import decoder_role, image_encoder_role, text_encoder_role
from xattn_export.families.checkpoint_folder.caches import cross_presents, encoder_decoder_cache, presents
from xattn_export.families.checkpoint_folder.classes import transformers_family
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
from xattn_export.families.drawings import few_images
from xattn_export.families.layers.common import head
from xattn_export.families.layers.text.bart import BartEncoder, bart_decoder
from xattn_export.families.layers.text.decoders import CrossDecoderGraph, CrossKeys, DecoderParts
from xattn_export.families.layers.text.prompt import PromptGraph, mask_with_image
from xattn_export.families.layers.vision.davit import Davit
from xattn_export.families.transformers.florence2_text import tokenizer_with_prompts
from xattn_runtime.bundle.contract import cross_names
from xattn_runtime.bundle.manifest import TaskName
from xattn_runtime.errors import CheckpointError
from xattn_runtime.json_reader import show
from xattn_runtime.preprocess.steps import output_size_px

if TYPE_CHECKING:
    from transformers import Florence2ForConditionalGeneration

__all__ = ["FLORENCE2"]

_CHANNELS = 3


class Florence2ImageGraph(nn.Module):
    """Image to image tokens `[batch, 1 + places, width]`: the mean of all places, then each of them."""

    positions: Tensor

    def __init__(self, davit: Davit, projector: Any) -> None:
        super().__init__()
        self.davit = davit
        self.projection = projector.image_projection
        self.norm = projector.image_proj_norm
        self.register_buffer("positions", _positions(davit, projector), persistent=False)

    def forward(self, pixel_values: Tensor) -> tuple[Tensor]:
        tokens = self.davit(pixel_values) + self.positions
        tokens = torch.cat((tokens.mean(1, keepdim=True), tokens), 1)
        return (self.norm(self.projection(tokens)),)


def _open(task: TaskName, folder: Path) -> Source:
    from transformers import Florence2ForConditionalGeneration

    _check_kind(folder)
    model, weights = load_model(folder, Florence2ForConditionalGeneration)
    steps = image_steps_of(folder)
    davit = Davit(model.model.vision_tower, output_size_px(steps))
    _check_config(folder / "config.json", model.config, davit)
    parts = bart_decoder(model.model.language_model.decoder, model.lm_head)
    decoding = decoding_of(
        generation_file(folder),
        model.generation_config.to_dict(),
        vocabulary=model.config.text_config.vocab_size,
        max_positions=parts.longest,
    )
    image_tokens = 1 + davit.grid[0] * davit.grid[1]
    start = torch.tensor([decoding.prompt_token_ids])

    def generate(pixel_values: Tensor, prompt_ids: tuple[int, ...]) -> Generated:
        input_ids = torch.tensor([[*[model.config.image_token_id] * image_tokens, *prompt_ids]])

        def forced_logits(token_ids: tuple[int, ...]) -> Tensor:
            ids = torch.cat((start, torch.tensor([token_ids], dtype=torch.int64)), 1)
            return cast(Tensor, model(input_ids, pixel_values, decoder_input_ids=ids).logits[0])

        return generated(
            partial(model.generate, input_ids=input_ids, pixel_values=pixel_values),
            forced_logits,
            prompt_length=start.shape[1],
            end_token_ids=decoding.end_token_ids,
        )

    return Source(
        name=name_of(folder),
        task=task,
        license=license_of(folder),
        weights=weights,
        roles=(
            _image_role(model, davit, output_size_px(steps)),
            _prompt_role(model, parts, image_tokens),
            _decoder_role(model, parts),
        ),
        tokenizer=tokenizer_with_prompts(folder, source_tokenizer(folder, parts.longest - image_tokens)),
        reference=Generates(steps, decoding, generate),
        golden_inputs=few_images(task),
    )


def _image_role(model: Florence2ForConditionalGeneration, davit: Davit, size_px: tuple[int, int]) -> Role:
    def reference(pixel_values: Tensor) -> tuple[Tensor]:
        return (cast(Any, model.get_image_features(pixel_values)).pooler_output,)

    graph = Florence2ImageGraph(davit, model.model.multi_modal_projector)
    return image_encoder_role(graph, reference, size_px, ("image_tokens",))


def _prompt_role(model: Florence2ForConditionalGeneration, parts: DecoderParts, image_tokens: int) -> Role:
    text = model.config.text_config
    language = cast(Any, model.model.language_model)

    def reference(input_ids: Tensor, attention_mask: Tensor, image: Tensor) -> tuple[Tensor, ...]:
        """The keys and values that the decoder itself puts into its cache."""
        embedded = torch.cat((image, model.get_input_embeddings()(input_ids)), 1)
        states = language.encoder(inputs_embeds=embedded, attention_mask=mask_with_image(attention_mask, image))[0]
        first = torch.zeros(input_ids.shape[0], 1, dtype=torch.int64)
        outputs = language.decoder(first, encoder_hidden_states=states, use_cache=True)
        return cross_presents(outputs.past_key_values)

    return text_encoder_role(
        PromptGraph(language.shared, BartEncoder(language.encoder), CrossKeys(parts.cross, parts.heads)),
        reference,
        text.vocab_size,
        parts.longest - image_tokens,
        cross_names(len(parts.layers)),
        (TensorSpec("image_tokens", ("batch", image_tokens, text.d_model), "normal"),),
    )


def _decoder_role(model: Florence2ForConditionalGeneration, parts: DecoderParts) -> Role:
    text, layers = model.config.text_config, len(parts.layers)
    decoder = cast(Any, model.model.language_model).decoder

    def reference(input_ids: Tensor, *caches: Tensor) -> tuple[Tensor, ...]:
        cache = encoder_decoder_cache(pairs(caches[: 2 * layers]), pairs(caches[2 * layers :]))
        # A placeholder for states whose keys and values are already in the cache: only its shape is used.
        states = torch.zeros(input_ids.shape[0], caches[-1].shape[2], text.d_model)
        outputs = decoder(input_ids, encoder_hidden_states=states, past_key_values=cache, use_cache=True)
        return *head(model.lm_head(outputs[0][:, -1])), *presents(cache)

    return decoder_role(
        CrossDecoderGraph(parts),
        reference,
        vocabulary=text.vocab_size,
        layers=layers,
        kv_heads=parts.heads,
        head_width=text.d_model // parts.heads,
        longest=parts.longest,
        cross_heads=parts.heads,
        cross_tokens="context",
    )


def _positions(davit: Davit, projector: Any) -> Tensor:
    """What the projector adds to every place of the map, by its own modules: `[places, width]`."""
    with torch.no_grad():
        empty = torch.zeros(1, projector.vision_embedding_dim, *davit.grid)
        places = projector.image_position_embed(empty).flatten(2).transpose(1, 2)
        return cast(Tensor, (places + projector.visual_temporal_embed(places[:, :1]))[0])


def _check_kind(folder: Path) -> None:
    """Refuse what only looks like a Florence-2 of Transformers, before anything is loaded."""
    path = folder / "config.json"
    text = read_json(path).get("text_config")
    kind = text.get("model_type", "bart") if isinstance(text, dict) else None
    if kind != "bart":
        raise CheckpointError(
            f"{path}: text_config.model_type: expected 'bart', found {show(kind)}; of models that come with code of "
            "their own take the one in Transformers' layout, such as florence-community/Florence-2-base"
        )


def _check_config(path: Path, config: Any, davit: Davit) -> None:
    """Refuse what Transformers itself cannot run."""
    vision, text = config.vision_config, config.text_config
    tokens = 1 + davit.grid[0] * davit.grid[1]
    for key, expected, stated in (
        ("vision_config.in_channels", _CHANNELS, vision.in_channels),
        ("vision_config.projection_dim", text.d_model, vision.projection_dim),
    ):
        if stated != expected:
            raise CheckpointError(f"{path}: {key}: expected {expected}, found {stated}")
    for key, fewest, stated in (
        ("vision_config.max_position_embeddings", max(davit.grid), vision.max_position_embeddings),
        ("text_config.max_position_embeddings", tokens + 1, text.max_position_embeddings),
        ("text_config.vocab_size", config.image_token_id + 1, text.vocab_size),
    ):
        if stated < fewest:
            raise CheckpointError(f"{path}: {key}: expected at least {fewest}, found {stated}")


FLORENCE2 = transformers_family(
    "Florence-2",
    partial(_open, "caption"),
    {"Florence2ForConditionalGeneration": "florence2"},
    also={"vqa": partial(_open, "vqa")},
)
