"""GIT: captioning, and visual question answering with the question as a prompt.

An image encoder (CLIP's) and a decoder that reads image tokens and text in one sequence. Image tokens attend to each
other alone, so that the decoder's keys and values of them depend on the image only: they are computed once, and a
cache begins with them. https://arxiv.org/abs/2205.14100
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor, nn

from xattn_edge.attention.caches import flatten, pairs
from xattn_export.families.base import Family, Generated, Generates, Role, Source
from xattn_export.families.base.standard_roles import decoder_role, image_encoder_role
from xattn_export.families.checkpoint_folder.caches import dynamic_cache, dynamic_presents
from xattn_export.families.checkpoint_folder.classes import transformers_family
from xattn_export.families.checkpoint_folder.decoding import decoding_of
from xattn_export.families.checkpoint_folder.folder import (
    generation_file,
    license_of,
    load_model,
    name_of,
)
from xattn_export.families.checkpoint_folder.images import image_steps
from xattn_export.families.checkpoint_folder.reference import generated
from xattn_export.families.checkpoint_folder.tokenizer import source_tokenizer
from xattn_export.families.drawings import few_images
from xattn_export.families.layers.common import head
from xattn_export.families.layers.text.bert import BertTextEmbeddings
from xattn_export.families.layers.text.git import GitImageTokens, GitLayer
from xattn_runtime.bundle.contract import prefix_names
from xattn_runtime.bundle.manifest import TaskName
from xattn_runtime.bundle.task_table import TASKS
from xattn_runtime.errors import CheckpointError

if TYPE_CHECKING:
    from transformers import GitForCausalLM
    from transformers.models.git.modeling_git import GitModel

__all__ = ["GIT"]


class GitPrefixGraph(nn.Module):
    """Image to the decoder's keys and values of its image tokens, in every layer."""

    def __init__(self, model: GitModel) -> None:
        super().__init__()
        self.image_tokens = GitImageTokens(model)
        self.layers = nn.ModuleList(GitLayer(layer) for layer in model.encoder.layer)

    def forward(self, pixel_values: Tensor) -> tuple[Tensor, ...]:
        tokens = self.image_tokens(pixel_values)
        prefix = []
        for layer in self.layers[:-1]:
            tokens, keys_and_values = layer(tokens)
            prefix.append(keys_and_values)
        return flatten([*prefix, cast(GitLayer, self.layers[-1]).keys_and_values(tokens)])


class GitDecoderGraph(nn.Module):
    """One decoding step: tokens after a cache that begins with the image tokens; logits of the last position alone."""

    def __init__(self, model: GitForCausalLM, image_tokens: int) -> None:
        super().__init__()
        self.embeddings = BertTextEmbeddings(model.git)
        self.layers = nn.ModuleList(GitLayer(layer) for layer in model.git.encoder.layer)
        self.head = model.output
        self.image_tokens = image_tokens

    def forward(self, input_ids: Tensor, *past: Tensor) -> tuple[Tensor, ...]:
        cache = pairs(past)
        # Positions count text alone.
        tokens = self.embeddings(input_ids, cache[0].key.shape[2] - self.image_tokens)
        present = []
        for layer, layer_past in zip(self.layers, cache, strict=True):
            tokens, layer_present = cast(GitLayer, layer).with_cache(tokens, layer_past)
            present.append(layer_present)
        return *head(self.head(tokens[:, -1])), *flatten(present)


def _open(task: TaskName, folder: Path) -> Source:
    from transformers import GitForCausalLM

    model, weights = load_model(folder, GitForCausalLM)
    _refuse_video(folder, model)
    side_px = int(model.config.vision_config.image_size)
    # A decoder alone begins with `bos_token_id`, whatever `decoder_start_token_id` says.
    decoding = decoding_of(
        generation_file(folder),
        {**model.generation_config.to_dict(), "decoder_start_token_id": None},
        vocabulary=model.config.vocab_size,
        max_positions=model.config.max_position_embeddings,
    )
    image_tokens = _image_tokens(model)
    most_tokens = model.config.max_position_embeddings - len(decoding.prompt_token_ids) - 1

    def generate(pixel_values: Tensor, prompt_ids: tuple[int, ...]) -> Generated:
        prompt = torch.tensor([[*decoding.prompt_token_ids, *prompt_ids]])

        def forced_logits(token_ids: tuple[int, ...]) -> Tensor:
            ids = torch.cat((prompt, torch.tensor([token_ids], dtype=torch.int64)), 1)
            logits = model(ids, pixel_values=pixel_values, use_cache=False).logits[0]
            return cast(Tensor, logits[image_tokens + prompt.shape[1] - 1 :])

        return generated(
            partial(model.generate, input_ids=prompt, pixel_values=pixel_values),
            forced_logits,
            prompt_length=prompt.shape[1],
            end_token_ids=decoding.end_token_ids,
        )

    return Source(
        name=name_of(folder),
        task=task,
        license=license_of(folder),
        weights=weights,
        roles=(_prefix_role(model, side_px), _decoder_role(model)),
        tokenizer=source_tokenizer(folder, most_tokens, reads=TASKS[task].text_key is not None),
        reference=Generates(image_steps(folder, side_px, side_px), decoding, generate),
        golden_inputs=few_images(task),
    )


def _prefix_role(model: GitForCausalLM, side_px: int) -> Role:
    layers, image_tokens = model.config.num_hidden_layers, _image_tokens(model)

    def reference(pixel_values: Tensor) -> tuple[Tensor, ...]:
        text = torch.zeros(pixel_values.shape[0], 1, dtype=torch.int64)
        cache = model.git(text, pixel_values=pixel_values, use_cache=True).past_key_values
        return tuple(tensor[:, :, :image_tokens] for tensor in dynamic_presents(cache))

    return image_encoder_role(GitPrefixGraph(model.git), reference, (side_px, side_px), prefix_names(layers))


def _decoder_role(model: GitForCausalLM) -> Role:
    config, image_tokens = model.config, _image_tokens(model)

    def reference(input_ids: Tensor, *past: Tensor) -> tuple[Tensor, ...]:
        cache = dynamic_cache(pairs(past))
        first = past[0].shape[2] - image_tokens
        places = torch.arange(first, first + input_ids.shape[1])[None]
        logits = model(input_ids, position_ids=places, past_key_values=cache, use_cache=True).logits
        return *head(logits[:, -1]), *dynamic_presents(cache)

    return decoder_role(
        GitDecoderGraph(model, image_tokens),
        reference,
        vocabulary=config.vocab_size,
        layers=config.num_hidden_layers,
        kv_heads=config.num_attention_heads,
        head_width=config.hidden_size // config.num_attention_heads,
        longest=image_tokens + config.max_position_embeddings,
        prefix=image_tokens,
    )


def _image_tokens(model: GitForCausalLM) -> int:
    return int(model.git.image_encoder.vision_model.embeddings.num_positions)


def _refuse_video(folder: Path, model: GitForCausalLM) -> None:
    frames = model.config.num_image_with_embedding
    if frames is not None and frames > 1:
        raise CheckpointError(
            f"{folder / 'config.json'}: num_image_with_embedding: expected none, or 1, found {frames}; models that "
            "read several frames of a video cannot be exported"
        )


GIT: tuple[Family, ...] = (
    transformers_family(
        "GIT",
        partial(_open, "caption"),
        {"GitForCausalLM": "git"},
        also={"vqa": partial(_open, "vqa")},
    ),
)
