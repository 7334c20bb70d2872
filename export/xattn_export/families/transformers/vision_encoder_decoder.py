"""Transformers' VisionEncoderDecoder: an image encoder and a text decoder with cross-attention, for captions and OCR.

ViT-GPT2 and TrOCR (https://arxiv.org/abs/2109.10282) are the best known. The encoder's states go through
`enc_to_dec_proj` where the widths differ, and once an image through the keys and values of every decoder layer.
"""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from xattn_edge.attention.caches import pairs
from xattn_export.families.base import Generated, Generates, Role, Source
from xattn_export.families.base.standard_roles import decoder_role, image_encoder_role
from xattn_export.families.checkpoint_folder.caches import cross_presents, encoder_decoder_cache, presents
from xattn_export.families.checkpoint_folder.classes import nearest, transformers_family
from xattn_export.families.checkpoint_folder.decoding import decoding_of
from xattn_export.families.checkpoint_folder.folder import (
    generation_file,
    license_of,
    load_model,
    name_of,
)
from xattn_export.families.checkpoint_folder.images import image_steps
from xattn_export.families.checkpoint_folder.json_files import read_json
from xattn_export.families.checkpoint_folder.reference import generated
from xattn_export.families.checkpoint_folder.tokenizer import source_tokenizer
from xattn_export.families.drawings import few_images
from xattn_export.families.layers.common import head
from xattn_export.families.layers.text.decoders import DECODERS, CrossDecoderGraph, CrossKeys, DecoderParts
from xattn_export.families.layers.vision.encoders import ENCODERS, check_encoder, image_size_px
from xattn_runtime.bundle.contract import cross_names
from xattn_runtime.errors import CheckpointError
from xattn_runtime.json_reader import show

if TYPE_CHECKING:
    from transformers import VisionEncoderDecoderModel

__all__ = ["VISION_ENCODER_DECODER"]

# Poolers, and tables that older versions of Transformers kept beside the weights and compute now.
_UNUSED = (
    r"^encoder\.pooler\.",
    r"^decoder\.(bert|roberta)\.pooler\.",
    r"\.embeddings\.(position_ids|token_type_ids)$",
    r"\.(attn|crossattention)\.(masked_)?bias$",
    r"\.relative_position_index$",
    r"\.embed_positions\._float_tensor$",
)


class EncoderKeysGraph(nn.Module):
    """Image to the cross-attention keys and values of every layer of the decoder."""

    def __init__(self, model: Any, parts: DecoderParts) -> None:
        super().__init__()
        self.encoder = ENCODERS[model.config.encoder.model_type](model.encoder)
        self.projection = getattr(model, "enc_to_dec_proj", nn.Identity())
        self.cross = CrossKeys(parts.cross, parts.heads)

    def forward(self, pixel_values: Tensor) -> tuple[Tensor, ...]:
        return cast("tuple[Tensor, ...]", self.cross(self.projection(self.encoder(pixel_values))))


def _open(folder: Path) -> Source:
    from transformers import VisionEncoderDecoderModel
    from transformers.modeling_outputs import BaseModelOutput

    _check_kinds(folder)
    model, weights = load_model(folder, VisionEncoderDecoderModel, unused=_UNUSED)
    config = model.config
    check_encoder(folder / "config.json", config.encoder)
    _check_widths(folder / "config.json", config.decoder)
    size_px = image_size_px(config.encoder)
    parts = DECODERS[config.decoder.model_type](model.decoder)
    decoding = decoding_of(
        generation_file(folder),
        model.generation_config.to_dict(),
        vocabulary=config.decoder.vocab_size,
        max_positions=parts.longest,
    )

    def generate(pixel_values: Tensor, prompt_ids: tuple[int, ...]) -> Generated:
        prompt = torch.tensor([[*decoding.prompt_token_ids, *prompt_ids]])
        states = model.encoder(pixel_values=pixel_values)[0]

        def forced_logits(token_ids: tuple[int, ...]) -> Tensor:
            return _forced_logits(model, _projected(model, states), prompt, token_ids)

        def generate(**settings: Any) -> Any:
            # An object of its own for each call: beam search repeats the rows of what it is given in place.
            encoded = BaseModelOutput(last_hidden_state=states)
            return model.generate(pixel_values, encoder_outputs=encoded, decoder_input_ids=prompt, **settings)

        return generated(generate, forced_logits, prompt_length=prompt.shape[1], end_token_ids=decoding.end_token_ids)

    return Source(
        name=name_of(folder),
        task="caption",
        license=license_of(folder),
        weights=weights,
        roles=(_image_keys_role(model, parts, size_px), _decoder_role(model, parts, size_px)),
        tokenizer=source_tokenizer(folder, parts.longest, reads=False),
        reference=Generates(image_steps(folder, *size_px), decoding, generate),
        golden_inputs=few_images("caption"),
    )


def _check_kinds(folder: Path) -> None:
    """Refuse encoders and decoders that there is no graph for, by name, before anything is loaded."""
    path = folder / "config.json"
    config = read_json(path)
    for part, known in (("encoder", ENCODERS), ("decoder", DECODERS)):
        _check_kind(path, part, config.get(part), known)
    decoder = config["decoder"]
    if decoder["model_type"] != "trocr" and decoder.get("add_cross_attention") is not True:
        raise CheckpointError(
            f"{path}: decoder.add_cross_attention: expected true, found {show(decoder.get('add_cross_attention'))}; "
            "without cross-attention the decoder does not see the image"
        )


def _check_kind(path: Path, part: str, config: object, known: Collection[str]) -> None:
    kind = config.get("model_type") if isinstance(config, dict) else None
    if kind not in known:
        near = nearest(kind, known) if isinstance(kind, str) else None
        hint = f" (the nearest: {near})" if near else ""
        raise CheckpointError(
            f"{path}: {part}.model_type: expected one of {', '.join(known)}{hint}, found {show(kind)}; "
            f"a VisionEncoderDecoder with this {part} cannot be exported yet, see docs/families.md"
        )


def _check_widths(path: Path, decoder: Any) -> None:
    """Refuse states of a width that no cross-attention but TrOCR's takes."""
    width = getattr(decoder, "cross_attention_hidden_size", None)
    if decoder.model_type != "trocr" and width not in (None, decoder.hidden_size):
        raise CheckpointError(
            f"{path}: decoder.cross_attention_hidden_size: expected none or {decoder.hidden_size}, the width of the "
            f"decoder, found {width}"
        )


def _image_keys_role(model: VisionEncoderDecoderModel, parts: DecoderParts, size_px: tuple[int, int]) -> Role:
    def reference(pixel_values: Tensor) -> tuple[Tensor, ...]:
        """The keys and values that the decoder itself puts into its cache."""
        first = torch.zeros(pixel_values.shape[0], 1, dtype=torch.int64)
        outputs = model.decoder(first, encoder_hidden_states=_states(model, pixel_values), use_cache=True)
        return cross_presents(outputs.past_key_values)

    return image_encoder_role(EncoderKeysGraph(model, parts), reference, size_px, cross_names(len(parts.layers)))


def _decoder_role(model: VisionEncoderDecoderModel, parts: DecoderParts, size_px: tuple[int, int]) -> Role:
    config, decoder = model.config.decoder, model.decoder
    layers = len(parts.layers)

    def reference(input_ids: Tensor, *caches: Tensor) -> tuple[Tensor, ...]:
        cache = encoder_decoder_cache(pairs(caches[: 2 * layers]), pairs(caches[2 * layers :]))
        # A placeholder for states whose keys and values are already in the cache: only its shape is used.
        states = torch.zeros(input_ids.shape[0], caches[-1].shape[2], config.hidden_size)
        logits = decoder(input_ids, encoder_hidden_states=states, past_key_values=cache, use_cache=True).logits
        return *head(logits[:, -1]), *presents(cache)

    return decoder_role(
        CrossDecoderGraph(parts),
        reference,
        vocabulary=config.vocab_size,
        layers=layers,
        kv_heads=parts.heads,
        head_width=config.hidden_size // parts.heads,
        longest=parts.longest,
        cross_heads=parts.heads,
        cross_tokens=_image_tokens(model, size_px),
    )


def _states(model: VisionEncoderDecoderModel, pixel_values: Tensor) -> Tensor:
    """What the decoder attends to, `[batch, tokens, width]`."""
    return _projected(model, model.encoder(pixel_values=pixel_values)[0])


def _projected(model: VisionEncoderDecoderModel, states: Tensor) -> Tensor:
    return cast(Tensor, model.enc_to_dec_proj(states) if hasattr(model, "enc_to_dec_proj") else states)


def _image_tokens(model: VisionEncoderDecoderModel, size_px: tuple[int, int]) -> int:
    with torch.no_grad(), FakeTensorMode(allow_non_fake_inputs=True):  # only its shape is computed
        return int(model.encoder(pixel_values=torch.zeros(1, 3, *size_px))[0].shape[1])


def _forced_logits(
    model: VisionEncoderDecoderModel, states: Tensor, prompt: Tensor, token_ids: tuple[int, ...]
) -> Tensor:
    """Logits `[len(token_ids) + 1, vocabulary]` along `token_ids`, as `generate()` computes them.

    In one pass, but where the ids hold the padding token: positions that leave padding out are then other ones a token
    at a time.
    """
    ids = torch.cat((prompt, torch.tensor([token_ids], dtype=torch.int64)), 1)
    first = prompt.shape[1]
    stepwise = model.config.decoder.pad_token_id in ids.tolist()[0]
    singly = (ids[:, place : place + 1] for place in range(first, ids.shape[1]))
    parts = (ids[:, :first], *singly) if stepwise else (ids,)
    cache, rows = encoder_decoder_cache([], []), []
    for part in parts:
        outputs = model.decoder(part, encoder_hidden_states=states, past_key_values=cache, use_cache=True)
        rows.append(outputs.logits[0])
    return torch.cat(rows)[first - 1 :]


VISION_ENCODER_DECODER = transformers_family(
    "VisionEncoderDecoder", _open, {"VisionEncoderDecoderModel": "vision-encoder-decoder"}
)
