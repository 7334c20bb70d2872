"""ViT before GPT-2 on the shelf: captioners of the VisionEncoderDecoder kind."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import AutoImageProcessor, AutoTokenizer, VisionEncoderDecoderModel
from transformers.models.trocr.modeling_trocr import TrOCRSinusoidalPositionalEmbedding

from tests.parity.shelf.published import (
    Found,
    Origin,
    Published,
    put_json,
    put_weights,
    random_model,
    written_out,
)
from tests.parity.shelf.truths import Answer, Generates, answer_of, generate
from tests.parity.shelf.vocabularies import GPT2_WORDS, put_bytes

__all__ = ["CAPTIONERS", "HALF", "VIT", "VIT_PIXELS", "encoder_decoder_config", "encoder_decoder_truth"]

HALF = {"image_mean": [0.5, 0.5, 0.5], "image_std": [0.5, 0.5, 0.5]}
VIT = {
    "attention_probs_dropout_prob": 0.0, "hidden_act": "gelu", "hidden_dropout_prob": 0.0, "hidden_size": 32,
    "image_size": 32, "initializer_range": 0.02, "intermediate_size": 64, "layer_norm_eps": 1e-12, "model_type": "vit",
    "num_attention_heads": 4, "num_channels": 3, "num_hidden_layers": 2, "patch_size": 8, "qkv_bias": True,
}  # fmt: skip
_END = len(GPT2_WORDS) - 1
_GPT2 = {
    "activation_function": "gelu_new", "attn_pdrop": 0.1, "embd_pdrop": 0.1, "initializer_range": 0.02,
    "layer_norm_epsilon": 1e-05, "model_type": "gpt2", "n_ctx": 64, "n_embd": 32, "n_head": 4, "n_inner": None,
    "n_layer": 2, "n_positions": 64, "reorder_and_upcast_attn": False, "resid_pdrop": 0.1,
    "scale_attn_by_inverse_layer_idx": False, "scale_attn_weights": True, "summary_activation": None,
    "summary_first_dropout": 0.1, "summary_proj_to_labels": True, "summary_type": "cls_index",
    "summary_use_proj": True, "use_cache": True, "vocab_size": _END + 1,
    "task_specific_params": {"text-generation": {"do_sample": True, "max_length": 50}},
}  # fmt: skip
_ENDS = {"bos_token_id": _END, "eos_token_id": _END, "decoder_start_token_id": _END, "pad_token_id": _END}
VIT_PIXELS = {
    "do_normalize": True, "do_resize": True, "feature_extractor_type": "ViTFeatureExtractor", **HALF, "resample": 2,
    "size": 32,
}  # fmt: skip
_WORD = "<|endoftext|>"
_SPECIAL = {"bos_token": _WORD, "eos_token": _WORD, "unk_token": _WORD}
_SETTINGS = {**_SPECIAL, "add_prefix_space": False, "model_max_length": 1024, "tokenizer_class": "GPT2Tokenizer"}


def encoder_decoder_truth(folder: Path, tokenizer: Any = None) -> Generates:
    """The model and the classes of its processor, by themselves; `tokenizer` is the folder's unless there is one."""
    model = VisionEncoderDecoderModel.from_pretrained(folder, local_files_only=True).eval()
    for part in model.modules():
        if isinstance(part, TrOCRSinusoidalPositionalEmbedding):  # whose table is left without values
            part.weights = part.get_embedding(*part.weights.shape, part.padding_idx)
    words = tokenizer or AutoTokenizer.from_pretrained(folder, local_files_only=True)
    processor = AutoImageProcessor.from_pretrained(folder, local_files_only=True, backend="pil")
    stated = model.generation_config.eos_token_id
    ends = stated if isinstance(stated, list) else [stated]

    def answer(picture: Any, text: str | None, beams: int | None) -> Answer:
        pixel_values = processor(images=picture, return_tensors="pt").pixel_values
        return answer_of(words, generate(model, beams, pixel_values=pixel_values), 1, ends)

    says_beams = (model.generation_config.num_beams or 1) > 1
    return Generates(answer, beams=(None, 1 if says_beams else 3))


def _put(folder: Path, *, seed: int) -> None:
    model = random_model(folder, VisionEncoderDecoderModel, seed=seed, gain=1.5)
    layers = model.decoder.transformer
    with torch.no_grad():  # large words would call for themselves again
        layers.wte.weight.mul_(0.3)
    mask = torch.tril(torch.ones(layers.config.n_positions, layers.config.n_positions, dtype=torch.uint8))[None, None]
    parts = [f"decoder.transformer.h.{number}.{part}" for number in range(2) for part in ("attn", "crossattention")]
    put_weights(
        folder,
        model,
        pickled=True,
        copies={"decoder.lm_head.weight": "decoder.transformer.wte.weight"},
        more={f"{part}.bias": mask for part in parts} | {f"{part}.masked_bias": torch.tensor(-1e4) for part in parts},
    )
    put_bytes(folder, GPT2_WORDS)


def encoder_decoder_config(decoder: dict[str, Any], encoder: dict[str, Any], **settings: Any) -> dict[str, Any]:
    """config.json of a VisionEncoderDecoderModel with both parts written out."""
    return {
        "architectures": ["VisionEncoderDecoderModel"],
        "decoder": decoder,
        "encoder": encoder,
        "is_encoder_decoder": True,
        "model_type": "vision-encoder-decoder",
        "tie_word_embeddings": False,
        "torch_dtype": "float32",
        "transformers_version": None,
        **settings,
    }


def _nlpconnect(folder: Path) -> None:
    text = {"add_cross_attention": True, "architectures": ["GPT2LMHeadModel"], "is_decoder": True, **_GPT2, **_ENDS}
    image = written_out("4.15.0", architectures=["ViTModel"], **VIT)
    put_json(
        folder,
        config=encoder_decoder_config(written_out("4.15.0", **text), image, _name_or_path="vit-gpt-pt", **_ENDS),
        preprocessor_config=VIT_PIXELS,
        tokenizer_config={**_SETTINGS, "special_tokens_map_file": None, "name_or_path": "gpt2"},
        special_tokens_map={**_SPECIAL, "pad_token": _WORD},
    )
    _put(folder, seed=3)


CAPTIONERS = (
    Published(
        "nlpconnect/vit-gpt2-image-captioning",
        "4.15",
        _nlpconnect,
        encoder_decoder_truth,
        found=Found(Origin.OWN, Origin.NONE, Origin.OWN, Origin.USUAL),
        places="JalajBaghwala/Image-to-caption-genrator",
        is_quick=True,
    ),
)
