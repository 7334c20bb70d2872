"""GIT on the shelf: captioners, and the same model fine-tuned to answer questions."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import AutoProcessor, GitForCausalLM

from tests.parity.shelf.blip import BERT, CLIP_PIXELS
from tests.parity.shelf.published import (
    RESCALED,
    Found,
    Origin,
    Published,
    position_ids,
    put_json,
    put_weights,
    random_model,
    written_out,
)
from tests.parity.shelf.truths import Answer, Generates, answer_of, generate
from tests.parity.shelf.vocabularies import BERT_WORDS, put_bert

__all__ = ["GITS"]

_TEXT = {
    "architectures": ["GitForCausalLM"], "attention_probs_dropout_prob": 0.1, "bos_token_id": 101,
    "classifier_dropout": None, "eos_token_id": 102, "hidden_act": "gelu", "hidden_dropout_prob": 0.1,
    "hidden_size": 32, "initializer_range": 0.02, "intermediate_size": 64, "layer_norm_eps": 1e-12,
    "max_position_embeddings": 96, "model_type": "git", "num_attention_heads": 4, "num_hidden_layers": 2,
    "num_image_with_embedding": None, "pad_token_id": 0, "position_embedding_type": "absolute",
    "tie_word_embeddings": False, "torch_dtype": "float32", "transformers_version": None, "use_cache": True,
    "vocab_size": len(BERT_WORDS),
}  # fmt: skip
_VISION = {
    "attention_dropout": 0.0, "dropout": 0.0, "hidden_act": "quick_gelu", "hidden_size": 32, "initializer_factor": 1.0,
    "initializer_range": 0.02, "intermediate_size": 64, "layer_norm_eps": 1e-05, "model_type": "git_vision_model",
    "num_attention_heads": 4, "num_channels": 3, "num_hidden_layers": 2, "projection_dim": 24,
}  # fmt: skip
_VERSION = "4.26.0.dev0"


def _put(folder: Path, *, seed: int, side_px: int, patch_px: int, wide: bool = False) -> None:
    vision = {**_VISION, "image_size": side_px, "patch_size": patch_px, "hidden_size": 48 if wide else 32}
    put_json(
        folder,
        config={**_TEXT, "vision_config": written_out(_VERSION, **vision)},
        generation_config={
            "_from_model_config": True, "bos_token_id": 101, "eos_token_id": 102, "pad_token_id": 0,
            "transformers_version": _VERSION,
        },
        preprocessor_config={
            "crop_size": {"height": side_px, "width": side_px}, "do_center_crop": True, "do_convert_rgb": True,
            "do_normalize": True, "do_resize": True, **CLIP_PIXELS, **RESCALED,
            "image_processor_type": "CLIPImageProcessor", "processor_class": "GitProcessor", "resample": 3,
            "size": {"shortest_edge": side_px},
        },
        special_tokens_map=BERT,
        tokenizer_config={
            **BERT, "do_lower_case": True, "model_input_names": ["input_ids", "attention_mask"],
            "model_max_length": 512, "name_or_path": "bert-base-uncased", "processor_class": "GitProcessor",
            "special_tokens_map_file": None, "strip_accents": None, "tokenize_chinese_chars": True,
            "tokenizer_class": "BertTokenizer",
        },
    )  # fmt: skip
    put_bert(folder)
    model = random_model(folder, GitForCausalLM, seed=seed, gain=1.3)
    count = (side_px // patch_px) ** 2 + 1
    put_weights(folder, model, pickled=True, more=position_ids({"git": 96, "git.image_encoder.vision_model": count}))


def _truth(folder: Path, *, asks: bool) -> Generates:
    model = GitForCausalLM.from_pretrained(folder, local_files_only=True).eval()
    processor = AutoProcessor.from_pretrained(folder, local_files_only=True, backend="pil")

    def answer(picture: Any, text: str | None, beams: int | None) -> Answer:
        inputs = {"pixel_values": processor(images=picture, return_tensors="pt").pixel_values}
        if text is not None:
            words = processor(text=text, add_special_tokens=False).input_ids
            inputs["input_ids"] = torch.tensor([[processor.tokenizer.cls_token_id, *words]])
        start = 1 if text is None else inputs["input_ids"].shape[1]
        return answer_of(processor, generate(model, beams, **inputs), start, [102])

    return Generates(answer, asks=asks)


def _published(name: str, *, asks: bool = False, **form: Any) -> Published:
    return Published(
        f"microsoft/{name}",
        "4.26",
        lambda folder: _put(folder, **form),
        lambda folder: _truth(folder, asks=asks),
        found=Found(Origin.PROGRAM, Origin.USUAL, Origin.PROGRAM, Origin.PROGRAM),
        places="huggingface/transformers: convert_git_to_pytorch.py",
        task="vqa" if asks else "caption",
    )


GITS = (
    _published("git-base", seed=3, side_px=32, patch_px=8),
    _published("git-base-coco", seed=4, side_px=32, patch_px=8),
    _published("git-large-textcaps", seed=5, side_px=28, patch_px=7, wide=True),
    _published("git-base-vqav2", asks=True, seed=6, side_px=40, patch_px=8),
    _published("git-base-textvqa", asks=True, seed=7, side_px=40, patch_px=8),
)
