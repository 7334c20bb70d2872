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
from tests.parity.shelf.published import Published, put_json, put_weights, random_model, written_out
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
_CLIP_VISION = {**_VISION, **_CLIP, "model_type": "clip_vision_model", "num_channels": 3}
_TOP = {
    "architectures": ["CLIPModel"], "initializer_factor": 1.0, "logit_scale_init_value": 2.6592, "model_type": "clip",
    "projection_dim": 24, "torch_dtype": "float32",
}  # fmt: skip
_END = "<|endoftext|>"
_WORD = {"lstrip": False, "normalized": True, "rstrip": False, "single_word": False}
_CLIP_SPECIAL = {place: {"content": _END, **_WORD} for place in ("eos_token", "unk_token")}
_CLIP_SPECIAL |= {"bos_token": {"content": "<|startoftext|>", **_WORD}}
_CLIP_PIXELS = {"do_center_crop": True, "do_normalize": True, "do_resize": True, **CLIP_PIXELS, "resample": 3}


def _put_clip(folder: Path, *, seed: int, numbers: dict[str, torch.Tensor] | None = None, fast: bool = True) -> None:
    model = random_model(folder, CLIPModel, seed=seed)
    with torch.no_grad():
        model.logit_scale.fill_(2.6592)
    put_weights(folder, model, pickled=numbers is not None, more=numbers)
    put_clip(folder, fast=fast)


def _openai(folder: Path, *, seed: int, patch_px: int, repeated: bool = False) -> None:
    """The end of a text is stated as 2, and read as the largest id; sides of images are numbers."""
    stated = {"__type": "AddedToken"}
    vision = {**_CLIP_VISION, "patch_size": patch_px}
    short: dict[str, Any] | None = None
    short_vision: dict[str, Any] | None = None
    if repeated:  # stated a second time, in short, and what is not stated there is as by default: the ids, too
        ends = {"bos_token_id": len(CLIP_WORDS) - 2, "eos_token_id": len(CLIP_WORDS) - 1}
        short = {**_TEXT, **ends, "projection_dim": 24, "vocab_size": len(CLIP_WORDS)}
        short_vision = {**_VISION, "patch_size": patch_px, "projection_dim": 24}
    put_json(
        folder,
        config={
            **_TOP, "text_config": written_out("4.16.0", **_CLIP_TEXT), "text_config_dict": short,
            "transformers_version": None, "vision_config": written_out("4.16.0", **vision),
            "vision_config_dict": short_vision,
        },
        preprocessor_config={
            **_CLIP_PIXELS, "crop_size": 32, "feature_extractor_type": "CLIPFeatureExtractor", "size": 32,
        },
        special_tokens_map={**_CLIP_SPECIAL, "pad_token": _END},
        tokenizer_config={
            "add_prefix_space": False, **{place: {**word, **stated} for place, word in _CLIP_SPECIAL.items()},
            "do_lower_case": True, "errors": "replace", "model_max_length": 77, "pad_token": _END,
            "special_tokens_map_file": "./special_tokens_map.json", "tokenizer_class": "CLIPTokenizer",
        },
    )  # fmt: skip
    count = (32 // patch_px) ** 2 + 1
    numbers = {
        "text_model.embeddings.position_ids": torch.arange(77)[None],
        "vision_model.embeddings.position_ids": torch.arange(count)[None],
    }
    _put_clip(folder, seed=seed, numbers=numbers)


def _laion(folder: Path) -> None:
    """Another activation, and the right ids of the tokens that begin and end a text; padding has a word of its own."""
    count = len(CLIP_WORDS)
    gelu = {"hidden_act": "gelu"}
    ends = {"bos_token_id": count - 2, "eos_token_id": count - 1}
    padding = CLIP_WORDS.index("!")
    added = {padding: "!", count - 2: "<|startoftext|>", count - 1: _END}
    put_json(
        folder,
        config={
            **_TOP, "text_config": written_out("4.24.0", **{**_CLIP_TEXT, **gelu, **ends}), "text_config_dict": None,
            "transformers_version": None, "vision_config": written_out("4.24.0", **{**_CLIP_VISION, **gelu}),
            "vision_config_dict": None,
        },
        preprocessor_config={
            **_CLIP_PIXELS, "crop_size": {"height": 32, "width": 32}, "do_convert_rgb": True, "do_rescale": True,
            "feature_extractor_type": "CLIPFeatureExtractor", "image_processor_type": "CLIPImageProcessor",
            "rescale_factor": 0.00392156862745098, "size": {"shortest_edge": 32}, "use_square_size": False,
        },
        special_tokens_map={**_CLIP_SPECIAL, "pad_token": "!"},
        tokenizer_config={
            "add_prefix_space": False,
            "added_tokens_decoder": {
                str(number): {"content": word, **_WORD, "special": True} for number, word in sorted(added.items())
            },
            "bos_token": "<|startoftext|>", "clean_up_tokenization_spaces": True, "do_lower_case": True,
            "eos_token": _END, "errors": "replace", "model_max_length": 77, "pad_token": "!",
            "tokenizer_class": "CLIPTokenizer", "unk_token": _END,
        },
    )  # fmt: skip
    _put_clip(folder, seed=6, fast=False)


def _siglip(folder: Path, *, seed: int, resample: int, **vision: Any) -> None:
    """A sentencepiece model and nothing else for a tokenizer; what ends a text pads it too."""
    folder.mkdir()
    pieces = put_sentencepiece(folder, "spiece.model", bos_id=-1, eos_id=1, pad_id=0, unk_id=2)
    end = {"content": "</s>", "lstrip": True, "normalized": False, "rstrip": True, "single_word": False}
    unknown = {**end, "content": "<unk>"}
    put_json(
        folder,
        config={
            "architectures": ["SiglipModel"], "initializer_factor": 1.0, "model_type": "siglip",
            "text_config": {**_TEXT, "model_type": "siglip_text_model", "vocab_size": pieces, "projection_size": 32},
            "torch_dtype": "float32", "transformers_version": "4.37.0.dev0",
            "vision_config": {**_VISION, "hidden_size": 32, "model_type": "siglip_vision_model", **vision},
        },
        preprocessor_config=_siglip_pixels(vision.get("image_size", 32), resample),
        special_tokens_map={"eos_token": end, "pad_token": end, "unk_token": unknown},
        tokenizer_config={
            "added_tokens_decoder": {
                "1": {**end, "special": True}, "2": {**unknown, "special": True},
            },
            "additional_special_tokens": [], "clean_up_tokenization_spaces": True, "do_lower_case": True,
            "eos_token": "</s>", "model_input_names": ["input_ids"], "model_max_length": 64, "pad_token": "</s>",
            "processor_class": "SiglipProcessor", "sp_model_kwargs": {}, "tokenizer_class": "SiglipTokenizer",
            "unk_token": "<unk>",
        },
    )  # fmt: skip
    put_weights(folder, random_model(folder, SiglipModel, seed=seed))


def _siglip_pixels(side_px: int, resample: int) -> dict[str, Any]:
    return {
        "do_normalize": True, "do_rescale": True, "do_resize": True, **HALF,
        "image_processor_type": "SiglipImageProcessor", "processor_class": "SiglipProcessor", "resample": resample,
        "rescale_factor": 0.00392156862745098, "size": {"height": side_px, "width": side_px},
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
    word = {**_WORD, "normalized": False}
    put_json(
        folder,
        config={
            "architectures": ["SiglipModel"], "initializer_factor": 1.0, "model_type": "siglip",
            "text_config": {
                **_TEXT, "hidden_act": "gelu_pytorch_tanh", "model_type": "siglip_text_model", "projection_size": 32,
                "vocab_size": len(words), "torch_dtype": "float32",
            },
            "torch_dtype": "float32", "transformers_version": "4.49.0.dev0",
            "vision_config": {**_VISION, "hidden_size": 32, "model_type": "siglip_vision_model"},
        },
        preprocessor_config={**_siglip_pixels(32, 2), "do_convert_rgb": None},
        special_tokens_map={place: {"content": name, **word} for place, name in special.items()},
        tokenizer_config={
            "add_bos_token": False, "add_eos_token": True,
            "added_tokens_decoder": {
                str(number): {"content": name, **word, "special": True} for number, name in enumerate(words[:5])
            },
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


_CLIP_FOUND = "LVtomatoJ/sd-scripts, rajmodi8905/RAG-Implementation"
DUALS = (
    Published(
        "openai/clip-vit-base-patch32",
        "4.16",
        lambda folder: _openai(folder, seed=3, patch_px=16),
        _truth(),
        found=_CLIP_FOUND,
        assumed="the tokenizer's words as objects",
    ),
    Published(
        "openai/clip-vit-base-patch16",
        "4.16",
        lambda folder: _openai(folder, seed=4, patch_px=8),
        _truth(),
        found=_CLIP_FOUND,
        assumed="that it differs in its patches alone",
    ),
    Published(
        "openai/clip-vit-large-patch14",
        "4.16",
        lambda folder: _openai(folder, seed=5, patch_px=8, repeated=True),
        _truth(),
        found="LVtomatoJ/sd-scripts, Yee334/diffusion-project",
        assumed="settings of the images, as in clip-vit-base-patch32",
    ),
    Published(
        "laion/CLIP-ViT-H-14-laion2B-s32B-b79K",
        "4.24",
        _laion,
        _truth(),
        found="bhuvanmdev/test, in a folder made from it",
        assumed="the activation, and the ids of tokens",
        is_quick=True,
    ),
    Published(
        "google/siglip-base-patch16-224",
        "4.37",
        lambda folder: _siglip(folder, seed=3, resample=3),
        _truth(padding="max_length"),
        found="huggingface/transformers: convert_siglip_to_hf.py",
        assumed="settings of images and tokenizer",
        is_quick=True,
    ),
    Published(
        "google/siglip-so400m-patch14-384",
        "4.37",
        lambda folder: _siglip(folder, seed=4, resample=3, image_size=28, patch_size=7, intermediate_size=67),
        _truth(padding="max_length"),
        found="huggingface/transformers: convert_siglip_to_hf.py",
        assumed="settings of images and tokenizer",
    ),
    Published(
        "google/siglip2-base-patch16-224",
        "4.49",
        _siglip2,
        _truth(padding="max_length", max_length=64),
        found="none of its own",
        assumed="all of it; settings of the tokenizer as Gemma's are",
    ),
)
