"""BLIP-2 on the shelf: before OPT, which captions, and before Flan-T5, which answers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from transformers import AutoProcessor, Blip2ForConditionalGeneration, T5Tokenizer

from tests.parity.shelf.blip import CLIP_PIXELS
from tests.parity.shelf.published import (
    RESCALED,
    Found,
    Origin,
    Published,
    added_tokens,
    put_json,
    put_weights,
    random_model,
    token,
)
from tests.parity.shelf.truths import Answer, Generates, answer_of, generate
from tests.parity.shelf.vocabularies import OPT_WORDS, put_bytes

__all__ = ["BLIP2S"]

_QUERIES = 4
_QFORMER = {
    "classifier_dropout": None, "encoder_hidden_size": 32, "hidden_size": 32, "intermediate_size": 64,
    "model_type": "blip_2_qformer", "num_attention_heads": 4, "num_hidden_layers": 2,
}  # fmt: skip
_VISION = {
    "dropout": 0.0, "hidden_size": 32, "image_size": 32, "initializer_factor": 1.0, "intermediate_size": 64,
    "model_type": "blip_2_vision_model", "num_attention_heads": 4, "num_channels": 3, "num_hidden_layers": 2,
    "patch_size": 8, "projection_dim": 24,
}  # fmt: skip
_PIXELS = {
    "do_convert_rgb": True, "do_normalize": True, "do_resize": True, **CLIP_PIXELS, **RESCALED,
    "image_processor_type": "BlipImageProcessor", "processor_class": "Blip2Processor", "resample": 3,
    "size": {"height": 32, "width": 32},
}  # fmt: skip


def _config(text: dict[str, Any], image_token: int, *, decoder_only: bool) -> dict[str, Any]:
    return {
        "architectures": ["Blip2ForConditionalGeneration"],
        "image_text_hidden_size": 16,
        "image_token_index": image_token,
        "initializer_factor": 1.0,
        "initializer_range": 0.02,
        "model_type": "blip-2",
        "num_query_tokens": _QUERIES,
        "qformer_config": _QFORMER,
        "text_config": text,
        "torch_dtype": "float32",
        "transformers_version": "4.47.0.dev0",
        "use_decoder_only_language_model": decoder_only,
        "vision_config": _VISION,
    }


def _flan_t5(folder: Path) -> None:
    """The file of weights has the table of words three times; before the image's token stand 100 of T5's own."""
    pieces = ["▁a", "▁red", "▁the", "▁Question", "▁", *map(chr, range(33, 127))]
    scored = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", -9.0), *((piece, -2.0) for piece in pieces)]
    count = len(scored)
    added = {number: f"<extra_id_{99 + count - number}>" for number in range(count, count + 100)}
    added |= {0: "<pad>", 1: "</s>", 2: "<unk>", count + 100: "<image>"}
    extra = [f"<extra_id_{number}>" for number in range(100)]
    special = {"eos_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>"}
    text = {
        "architectures": ["T5ForConditionalGeneration"], "bos_token_id": 1, "classifier_dropout": 0.0, "d_ff": 64,
        "d_kv": 8, "d_model": 32, "decoder_start_token_id": 0, "dense_act_fn": "gelu", "dropout_rate": 0.1,
        "eos_token_id": 1, "feed_forward_proj": "gated-gelu", "initializer_factor": 1.0, "is_encoder_decoder": True,
        "is_gated_act": True, "layer_norm_epsilon": 1e-06, "model_type": "t5", "n_positions": 512,
        "num_decoder_layers": 2, "num_heads": 4, "num_layers": 2, "output_past": True, "pad_token_id": 0,
        "relative_attention_max_distance": 128, "relative_attention_num_buckets": 32,
        "task_specific_params": {"summarization": {"early_stopping": True, "max_length": 200, "num_beams": 4}},
        "tie_word_embeddings": False, "torch_dtype": "float32", "vocab_size": count + 128,
    }  # fmt: skip
    put_json(
        folder,
        config=_config(text, count + 100, decoder_only=False),
        generation_config={
            "_from_model_config": True, "bos_token_id": 1, "decoder_start_token_id": 0, "eos_token_id": 1,
            "pad_token_id": 0, "transformers_version": "4.47.0.dev0",
        },
        preprocessor_config=_PIXELS,
        processor_config={"num_query_tokens": _QUERIES, "processor_class": "Blip2Processor"},
        special_tokens_map={
            "additional_special_tokens": extra,
            **{place: token(word) for place, word in special.items()},
        },
        tokenizer_config={
            "added_tokens_decoder": added_tokens(added), "additional_special_tokens": extra,
            "clean_up_tokenization_spaces": True, **special, "extra_ids": 100,
            "model_max_length": 512, "processor_class": "Blip2Processor", "sp_model_kwargs": {},
            "tokenizer_class": "T5Tokenizer",
        },
    )  # fmt: skip
    tokenizer = T5Tokenizer(scored, extra_ids=0)
    tokenizer.add_tokens([added[number] for number in range(count, count + 101)], special_tokens=True)
    (folder / "tokenizer.json").write_text(tokenizer.backend_tokenizer.to_str(), encoding="utf-8")
    words = {
        f"language_model.{part}.embed_tokens.weight": "language_model.shared.weight" for part in ("encoder", "decoder")
    }
    put_weights(folder, random_model(folder, Blip2ForConditionalGeneration), copies=words)


def _opt(folder: Path) -> None:
    """A text ends with a new line, and begins with what ends one elsewhere."""
    image_token = len(OPT_WORDS)
    text = {
        "_name_or_path": "facebook/opt-2.7b", "activation_dropout": 0.0, "architectures": ["OPTForCausalLM"],
        "eos_token_id": OPT_WORDS.index("Ċ"), "ffn_dim": 64, "hidden_size": 32, "max_position_embeddings": 128,
        "model_type": "opt", "num_attention_heads": 4, "num_hidden_layers": 2, "prefix": "</s>",
        "torch_dtype": "float16", "vocab_size": image_token + 8, "word_embed_proj_dim": 32,
    }  # fmt: skip
    special = {"bos_token": "</s>", "eos_token": "</s>", "pad_token": "<pad>", "unk_token": "</s>"}
    ends = {1: token("<pad>", normalized=True), 2: token("</s>", normalized=True)}
    put_json(
        folder,
        config=_config(text, image_token, decoder_only=True),
        generation_config={
            "_from_model_config": True, "bos_token_id": 2, "eos_token_id": text["eos_token_id"], "pad_token_id": 1,
            "transformers_version": "4.47.0.dev0",
        },
        preprocessor_config=_PIXELS,
        processor_config={"num_query_tokens": _QUERIES, "processor_class": "Blip2Processor"},
        special_tokens_map={place: token(name, normalized=True) for place, name in special.items()},
        added_tokens={"<image>": image_token},
        tokenizer_config={
            "add_bos_token": True, "add_prefix_space": False,
            "added_tokens_decoder": added_tokens({**ends, image_token: "<image>"}),
            "clean_up_tokenization_spaces": True, **special, "errors": "replace", "model_max_length": 1000000000000,
            "processor_class": "Blip2Processor", "tokenizer_class": "GPT2Tokenizer",
        },
    )  # fmt: skip
    put_bytes(folder, OPT_WORDS, fast=False)
    tied = {"language_model.lm_head.weight": "language_model.model.decoder.embed_tokens.weight"}
    put_weights(folder, random_model(folder, Blip2ForConditionalGeneration, seed=4), copies=tied)


def _truth(folder: Path, *, asks: bool) -> Generates:
    model = Blip2ForConditionalGeneration.from_pretrained(folder, local_files_only=True).eval()
    processor = AutoProcessor.from_pretrained(folder, local_files_only=True, backend="pil")
    ends = [json.loads((folder / "config.json").read_text())["text_config"]["eos_token_id"]]

    def answer(picture: Any, text: str | None, beams: int | None) -> Answer:
        more = {} if text is None else {"text": f"Question: {text} Answer:"}
        inputs = processor(images=picture, return_tensors="pt", **more)
        ids = generate(model, beams, **inputs)
        if asks:
            start = 1 if model.config.text_config.is_encoder_decoder else inputs["input_ids"].shape[1]
        else:
            start = _prompt_length(model, ids)
        return answer_of(processor, ids, start, ends)

    return Generates(answer, asks=asks)


def _prompt_length(model: Any, ids: list[int]) -> int:
    """Of a caption: the places of the image and the word that begins a text."""
    image = model.config.image_token_index
    return ids.count(image) + 1


BLIP2S = (
    Published(
        "Salesforce/blip2-opt-2.7b",
        "4.47",
        _opt,
        lambda folder: _truth(folder, asks=False),
        found=Found(Origin.OWN, Origin.USUAL, Origin.PROGRAM, Origin.USUAL),
        places="whaler404/Hf-Learn; huggingface/transformers: convert_blip_2_original_to_pytorch.py",
    ),
    Published(
        "Salesforce/blip2-flan-t5-xl",
        "4.47",
        _flan_t5,
        lambda folder: _truth(folder, asks=True),
        found=Found(Origin.OWN, Origin.USUAL, Origin.PROGRAM, Origin.OWN),
        places="HyZhenSzu/CloudComputer_Final; huggingface/transformers: convert_blip_2_original_to_pytorch.py",
        task="vqa",
    ),
)
