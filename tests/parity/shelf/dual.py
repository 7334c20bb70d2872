"""CLIP and SigLIP on the shelf, which embed images and texts."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from transformers import AutoModel, AutoProcessor, CLIPModel, SiglipModel

from tests.parity.shelf.blip import CLIP_PIXELS
from tests.parity.shelf.captioners import HALF
from tests.parity.shelf.published import (
    RESCALED,
    Found,
    Origin,
    Published,
    added_tokens,
    position_ids,
    put_json,
    put_weights,
    random_model,
    token,
    written_out,
)
from tests.parity.shelf.truths import TEXTS, Embeds
from tests.parity.shelf.vocabularies import CLIP_WORDS, put_clip, put_sentencepiece

__all__ = ["DUALS"]

_TEXT = {"hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 4, "num_hidden_layers": 2}
_VISION = {**_TEXT, "hidden_size": 48, "image_size": 32, "patch_size": 8}
_CLIP = {
    "attention_dropout": 0.0, "dropout": 0.0, "hidden_act": "quick_gelu", "initializer_factor": 1.0,
    "initializer_range": 0.02, "layer_norm_eps": 1e-05, "projection_dim": 24,
}  # fmt: skip
_CLIP_TEXT = {
    **_TEXT, **_CLIP, "bos_token_id": 0, "eos_token_id": 2, "max_position_embeddings": 77,
    "model_type": "clip_text_model", "pad_token_id": 1, "vocab_size": len(CLIP_WORDS),
}  # fmt: skip
_ENDS = {"bos_token_id": len(CLIP_WORDS) - 2, "eos_token_id": len(CLIP_WORDS) - 1}
"""Ids of the tokens that begin and end a text, as the tokenizer has them."""
_CLIP_VISION = {**_VISION, **_CLIP, "model_type": "clip_vision_model", "num_channels": 3}
_TOP = {
    "architectures": ["CLIPModel"], "initializer_factor": 1.0, "logit_scale_init_value": 2.6592, "model_type": "clip",
    "projection_dim": 24, "torch_dtype": "float32",
}  # fmt: skip
_START, _END = "<|startoftext|>", "<|endoftext|>"
_CLIP_SPECIAL = {
    place: token(word, normalized=True)
    for place, word in (("eos_token", _END), ("unk_token", _END), ("bos_token", _START))
}
_CLIP_PIXELS = {"do_center_crop": True, "do_normalize": True, "do_resize": True, **CLIP_PIXELS, "resample": 3}


def _put_clip(folder: Path, *, seed: int, numbers: dict[str, torch.Tensor] | None = None, fast: bool = True) -> None:
    model = random_model(folder, CLIPModel, seed=seed)
    with torch.no_grad():
        model.logit_scale.fill_(2.6592)
    put_weights(folder, model, pickled=numbers is not None, more=numbers)
    put_clip(folder, fast=fast)


def _put_clip_config(folder: Path, version: str, text: dict[str, Any], vision: dict[str, Any], **short: Any) -> None:
    """Parts written out; `short` is what states them a second time."""
    put_json(
        folder,
        config={
            **_TOP, "text_config": written_out(version, **text), "text_config_dict": None,
            "transformers_version": None, "vision_config": written_out(version, **vision),
            "vision_config_dict": None, **short,
        },
    )  # fmt: skip


def _openai(folder: Path, *, seed: int, patch_px: int, names: dict[str, str], repeated: bool = False) -> None:
    """The end of a text is stated as 2, and read as the largest id; sides of images are numbers.

    names: what tokenizer_config.json says of itself; that of the first model says no class.
    """
    stated = {"__type": "AddedToken"}
    vision = {**_CLIP_VISION, "patch_size": patch_px}
    short: dict[str, Any] = {}
    if repeated:  # stated a second time, in short, and what is not stated there is as by default: the ids, too
        text = {**_TEXT, **_ENDS, "projection_dim": 24, "vocab_size": len(CLIP_WORDS)}
        short_vision = {**_VISION, "patch_size": patch_px, "projection_dim": 24}
        short = {"text_config_dict": text, "vision_config_dict": short_vision}
    _put_clip_config(folder, "4.16.0", _CLIP_TEXT, vision, **short)
    put_json(
        folder,
        preprocessor_config={
            **_CLIP_PIXELS, "crop_size": 32, "feature_extractor_type": "CLIPFeatureExtractor", "size": 32,
        },
        special_tokens_map={**_CLIP_SPECIAL, "pad_token": _END},
        tokenizer_config={
            "add_prefix_space": False, **{place: {**word, **stated} for place, word in _CLIP_SPECIAL.items()},
            "do_lower_case": True, "errors": "replace", "model_max_length": 77, "pad_token": _END, **names,
        },
    )  # fmt: skip
    count = (32 // patch_px) ** 2 + 1
    _put_clip(folder, seed=seed, numbers=position_ids({"text_model": 77, "vision_model": count}))


def _laion(folder: Path) -> None:
    """Another activation, and the right ids of the tokens that begin and end a text; padding has a word of its own."""
    gelu = {"hidden_act": "gelu"}
    _put_clip_config(folder, "4.24.0", {**_CLIP_TEXT, **gelu, **_ENDS}, {**_CLIP_VISION, **gelu})
    words = {CLIP_WORDS.index("!"): "!", _ENDS["bos_token_id"]: _START, _ENDS["eos_token_id"]: _END}
    put_json(
        folder,
        preprocessor_config={
            **_CLIP_PIXELS, "crop_size": {"height": 32, "width": 32}, "do_convert_rgb": True, **RESCALED,
            "feature_extractor_type": "CLIPFeatureExtractor", "image_processor_type": "CLIPImageProcessor",
            "size": {"shortest_edge": 32}, "use_square_size": False,
        },
        special_tokens_map={**_CLIP_SPECIAL, "pad_token": "!"},
        tokenizer_config={
            "add_prefix_space": False,
            "added_tokens_decoder": added_tokens(
                {number: token(word, normalized=True) for number, word in words.items()}
            ),
            "bos_token": _START, "clean_up_tokenization_spaces": True, "do_lower_case": True,
            "eos_token": _END, "errors": "replace", "model_max_length": 77, "pad_token": "!",
            "tokenizer_class": "CLIPTokenizer", "unk_token": _END,
        },
    )  # fmt: skip
    _put_clip(folder, seed=6, fast=False)


def _siglip(folder: Path, *, seed: int, resample: int, **vision: Any) -> None:
    """A sentencepiece model and nothing else for a tokenizer; what ends a text pads it too."""
    folder.mkdir()
    pieces = put_sentencepiece(folder, "spiece.model", bos_id=-1, eos_id=1, pad_id=0, unk_id=2)
    end, unknown = (token(word, lstrip=True, rstrip=True) for word in ("</s>", "<unk>"))
    put_json(
        folder,
        config=_siglip_config("4.37.0.dev0", {"vocab_size": pieces}, vision),
        preprocessor_config=_siglip_pixels(vision.get("image_size", 32), resample),
        special_tokens_map={"eos_token": end, "pad_token": end, "unk_token": unknown},
        tokenizer_config={
            "added_tokens_decoder": added_tokens({1: end, 2: unknown}),
            "additional_special_tokens": [], "clean_up_tokenization_spaces": True, "do_lower_case": True,
            "eos_token": "</s>", "model_input_names": ["input_ids"], "model_max_length": 64, "pad_token": "</s>",
            "processor_class": "SiglipProcessor", "sp_model_kwargs": {}, "tokenizer_class": "SiglipTokenizer",
            "unk_token": "<unk>",
        },
    )  # fmt: skip
    put_weights(folder, random_model(folder, SiglipModel, seed=seed))


def _siglip_config(version: str, text: dict[str, Any], vision: dict[str, Any]) -> dict[str, Any]:
    return {
        "architectures": ["SiglipModel"], "initializer_factor": 1.0, "model_type": "siglip",
        "text_config": {**_TEXT, "model_type": "siglip_text_model", "projection_size": 32, **text},
        "torch_dtype": "float32", "transformers_version": version,
        "vision_config": {**_VISION, "hidden_size": 32, "model_type": "siglip_vision_model", **vision},
    }  # fmt: skip


def _siglip_pixels(side_px: int, resample: int) -> dict[str, Any]:
    return {
        "do_normalize": True, "do_resize": True, **HALF, **RESCALED,
        "image_processor_type": "SiglipImageProcessor", "processor_class": "SiglipProcessor", "resample": resample,
        "size": {"height": side_px, "width": side_px},
    }  # fmt: skip


def _siglip2(folder: Path) -> None:
    """The model of the first version with Gemma's tokenizer, which ends a text, pads it, and keeps its capitals."""
    folder.mkdir()
    words = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>", "▁", *map(chr, range(33, 127)), "ö", "ä", "▁a", "▁of"]
    tokenizer = Tokenizer(
        models.BPE(
            {word: number for number, word in enumerate(words)}, [("▁", "a"), ("▁", "of")][:1], unk_token="<unk>"
        )
    )
    tokenizer.normalizer = normalizers.Replace(" ", "▁")
    tokenizer.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    tokenizer.post_processor = processors.TemplateProcessing(
        single="$A <eos>", pair="$A <eos> $B <eos>", special_tokens=[("<eos>", 1)]
    )
    tokenizer.add_special_tokens(words[:5])
    tokenizer.save(str(folder / "tokenizer.json"))
    special = {"bos_token": "<bos>", "eos_token": "<eos>", "pad_token": "<pad>", "unk_token": "<unk>"}
    text = {"hidden_act": "gelu_pytorch_tanh", "torch_dtype": "float32", "vocab_size": len(words)}
    put_json(
        folder,
        config=_siglip_config("4.49.0.dev0", text, {}),
        preprocessor_config={**_siglip_pixels(32, 2), "do_convert_rgb": None},
        special_tokens_map={place: token(name) for place, name in special.items()},
        tokenizer_config={
            "add_bos_token": False, "add_eos_token": True,
            "added_tokens_decoder": added_tokens(dict(enumerate(words[:5]))),
            "clean_up_tokenization_spaces": False, "do_lower_case": True, "extra_special_tokens": {},
            "model_input_names": ["input_ids"], "model_max_length": 64, "padding_side": "right",
            "processor_class": "SiglipProcessor", "sp_model_kwargs": {}, "spaces_between_special_tokens": False,
            **special, "tokenizer_class": "GemmaTokenizer", "use_default_system_prompt": False,
        },
    )  # fmt: skip
    put_weights(folder, random_model(folder, SiglipModel, seed=5))


def _truth(**padding: Any) -> Callable[[Path], Embeds]:
    """What the model's own forward compares; texts are padded as its documentation has it."""

    def open_folder(folder: Path) -> Embeds:
        model = AutoModel.from_pretrained(folder, local_files_only=True).eval()
        processor = AutoProcessor.from_pretrained(folder, local_files_only=True, backend="pil")

        def embed(picture: Any, text: str) -> tuple[Any, Any]:
            with torch.no_grad():
                output = model(**processor(images=picture, text=text, return_tensors="pt", **padding))
            return output.image_embeds[0].numpy(), output.text_embeds[0].numpy()

        return Embeds(embed, TEXTS)

    return open_folder


_CLIP_NAMES = {"special_tokens_map_file": "./special_tokens_map.json", "tokenizer_class": "CLIPTokenizer"}
_SIGLIP = "huggingface/transformers: convert_siglip_to_hf.py"
DUALS = (
    Published(
        "openai/clip-vit-base-patch32",
        "4.16",
        lambda folder: _openai(folder, seed=3, patch_px=16, names={"name_or_path": "./clip_ViT_B_32/"}),
        _truth(),
        found=Found(Origin.OWN, Origin.NONE, Origin.USUAL, Origin.OWN),
        places="whaler404/Hf-Learn, OpenMeshLab/MeshXL",
    ),
    Published(
        "openai/clip-vit-base-patch16",
        "4.16",
        lambda folder: _openai(folder, seed=4, patch_px=8, names=_CLIP_NAMES),
        _truth(),
        found=Found(Origin.TWIN, Origin.NONE, Origin.USUAL, Origin.USUAL),
        places="whaler404/Hf-Learn: clip-vit-base-patch32",
    ),
    Published(
        "openai/clip-vit-large-patch14",
        "4.16",
        lambda folder: _openai(folder, seed=5, patch_px=8, names=_CLIP_NAMES, repeated=True),
        _truth(),
        found=Found(Origin.AGAIN, Origin.NONE, Origin.USUAL, Origin.AGAIN),
        places="LVtomatoJ/sd-scripts, Yee334/diffusion-project",
    ),
    Published(
        "laion/CLIP-ViT-H-14-laion2B-s32B-b79K",
        "4.24",
        _laion,
        _truth(),
        found=Found(Origin.AGAIN, Origin.NONE, Origin.AGAIN, Origin.USUAL),
        places="bhuvanmdev/test, in a folder made from it",
        is_quick=True,
    ),
    Published(
        "google/siglip-base-patch16-224",
        "4.37",
        lambda folder: _siglip(folder, seed=3, resample=3),
        _truth(padding="max_length"),
        found=Found(Origin.PROGRAM, Origin.NONE, Origin.PROGRAM, Origin.PROGRAM),
        places=_SIGLIP,
        is_quick=True,
    ),
    Published(
        "google/siglip-so400m-patch14-384",
        "4.37",
        lambda folder: _siglip(folder, seed=4, resample=3, image_size=28, patch_size=7, intermediate_size=67),
        _truth(padding="max_length"),
        found=Found(Origin.OWN, Origin.NONE, Origin.PROGRAM, Origin.PROGRAM),
        places=f"{_SIGLIP}; a public page that quotes config.json",
    ),
    Published(
        "google/siglip2-base-patch16-224",
        "4.49",
        _siglip2,
        _truth(padding="max_length", max_length=64),
        found=Found(Origin.OWN, Origin.NONE, Origin.OWN, Origin.OWN),
        places="tests of a public program that checks these files of revision 75de2d5",
    ),
)
