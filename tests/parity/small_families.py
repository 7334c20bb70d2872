"""A small model of each family of Transformers, with random weights: quick to export and to run in any engine."""

from __future__ import annotations

import string
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import BlipForConditionalGeneration, BlipForQuestionAnswering

from tests.parity.blip import save_blip
from tests.parity.blip2 import save_blip2
from tests.parity.dual import save_clip, save_siglip
from tests.parity.florence2 import save_florence2
from tests.parity.git import save_git
from tests.parity.regions import save_lxmert, save_visual_bert
from tests.parity.smolvlm import save_idefics3
from tests.parity.vilt import save_vilt
from tests.parity.vision_encoder_decoder import save_vit_gpt2
from xattn_runtime.bundle.manifest import TaskName

__all__ = ["SMALL_FAMILIES", "SmallFamily"]

_LETTERS = string.ascii_lowercase + string.digits
_WORDS = (
    "[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *_LETTERS, *(f"##{letter}" for letter in _LETTERS),
    "the", "red", "blue", "circle", "square", "what", "color", "is", "there", "?", ".", "[DEC]",
)  # fmt: skip
# Layers of 64 by 64: large enough for every mode of quantization.
_LAYERS = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4}
_BLIP = {
    "text": {**_LAYERS, "encoder_hidden_size": 64, "max_position_embeddings": 40},
    "vision": {**_LAYERS, "patch_size": 8},
}
_GIT = {"text": {**_LAYERS, "max_position_embeddings": 64}, "vision": {**_LAYERS, "patch_size": 8}}
_OPT = {"hidden_size": 64, "num_hidden_layers": 2, "ffn_dim": 128, "num_attention_heads": 4, "vocab_size": 288}
_T5 = {"d_model": 64, "d_kv": 16, "d_ff": 128, "num_heads": 4, "num_layers": 2, "num_decoder_layers": 2}
_LLAMA = {**_LAYERS, "num_key_value_heads": 2, "vocab_size": 400, "max_position_embeddings": 512}
_BART = {
    "d_model": 64, "encoder_layers": 2, "decoder_layers": 2, "encoder_ffn_dim": 128, "decoder_ffn_dim": 128,
    "encoder_attention_heads": 4, "decoder_attention_heads": 4, "max_position_embeddings": 240,
}  # fmt: skip
_DAVIT = {
    "embed_dim": (32, 64), "num_heads": (2, 4), "num_groups": (2, 4), "depths": (1, 1), "projection_dim": 64,
    "window_size": 4, "max_position_embeddings": 12, "patch_prenorm": (False, True), "patch_size": (7, 3),
    "patch_stride": (4, 2), "patch_padding": (3, 1),
}  # fmt: skip
_REGIONS = {"hidden_size": 64, "intermediate_size": 128, "num_attention_heads": 4, "max_position_embeddings": 24}


@dataclass(frozen=True)
class SmallFamily:
    """save: writes the model into a folder. task: to export it for, None for its own."""

    save: Callable[[Path], Path]
    task: TaskName | None = None


def _vit_gpt2(folder: Path) -> Path:
    text = {"n_embd": 64, "n_layer": 2, "n_head": 4, "n_positions": 32, "vocab_size": 300}
    ends = {"bos_token_id": 299, "eos_token_id": 299}
    return save_vit_gpt2(folder, text=text | ends, vision={**_LAYERS, "image_size": 32, "patch_size": 8})


def _clip(save: Callable[..., Path], words: int) -> Callable[[Path], Path]:
    ends = {"bos_token_id": words - 2, "eos_token_id": words - 1}
    text: dict[str, Any] = {**_LAYERS, **ends, "vocab_size": words, "max_position_embeddings": 64}
    return lambda folder: save(folder, 32, text=text, vision={**_LAYERS, "patch_size": 8})


def _lxmert(folder: Path) -> Path:
    layers = {"l_layers": 1, "x_layers": 2, "r_layers": 1, "visual_feat_dim": 64, "num_qa_labels": 5}
    return save_lxmert(folder, _WORDS, **_REGIONS, **layers)


def _visual_bert(folder: Path) -> Path:
    return save_visual_bert(folder, _WORDS, answers=5, **_REGIONS, num_hidden_layers=2, visual_embedding_dim=64)


SMALL_FAMILIES: Mapping[str, SmallFamily] = {
    "BLIP": SmallFamily(lambda folder: save_blip(folder, BlipForConditionalGeneration, _WORDS, 32, **_BLIP)),
    "BLIP VQA": SmallFamily(lambda folder: save_blip(folder, BlipForQuestionAnswering, _WORDS, 32, **_BLIP)),
    "ViT-GPT2": SmallFamily(_vit_gpt2),
    "GIT": SmallFamily(lambda folder: save_git(folder, _WORDS, 32, **_GIT), "caption"),
    "ViLT": SmallFamily(
        lambda folder: save_vilt(folder, _WORDS, 64, 5, **_LAYERS, patch_size=16, max_position_embeddings=24)
    ),
    "CLIP": SmallFamily(_clip(save_clip, 400)),
    "SigLIP": SmallFamily(_clip(save_siglip, 120)),
    "LXMERT": SmallFamily(_lxmert),
    "VisualBERT": SmallFamily(_visual_bert),
    "BLIP-2, OPT": SmallFamily(
        lambda folder: save_blip2(
            folder, 32, vision={**_LAYERS, "patch_size": 8}, queries=_LAYERS, text=_OPT, query_tokens=5
        )
    ),
    "BLIP-2, T5": SmallFamily(
        lambda folder: save_blip2(
            folder, 32, "t5", vision={**_LAYERS, "patch_size": 8}, queries=_LAYERS, text=_T5, query_tokens=5
        )
    ),
    "SmolVLM": SmallFamily(
        lambda folder: save_idefics3(
            folder,
            scale_factor=2,
            longest_px=96,
            tile_px=32,
            vision={**_LAYERS, "image_size": 32, "patch_size": 8},
            text=_LLAMA,
        ),
        "vqa",
    ),
    "Florence-2": SmallFamily(
        lambda folder: save_florence2(folder, 96, words=300, places=20, text=_BART, vision=_DAVIT), "caption"
    ),
}
