"""TrOCR and an OCR of Japanese on the shelf: readers of the VisionEncoderDecoder kind."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import BertJapaneseTokenizer, VisionEncoderDecoderModel

from tests.parity.shelf.captioners import HALF, VIT, encoder_decoder_truth
from tests.parity.shelf.published import Published, put_json, put_weights, random_model, written_out
from tests.parity.shelf.truths import Generates
from tests.parity.shelf.vocabularies import ROBERTA_WORDS, put_bytes, put_sentencepiece

__all__ = ["READERS"]

_ENDS = {"bos_token_id": 0, "decoder_start_token_id": 2, "eos_token_id": 2, "pad_token_id": 1}
_TROCR = {
    "activation_dropout": 0.0, "add_cross_attention": True, "attention_dropout": 0.0, "classifier_dropout": 0.0,
    "d_model": 32, "decoder_attention_heads": 4, "decoder_ffn_dim": 64, "decoder_layerdrop": 0.0, "decoder_layers": 2,
    "dropout": 0.1, "init_std": 0.02, "is_decoder": True, "max_position_embeddings": 64, "model_type": "trocr",
    "use_cache": False, "vocab_size": len(ROBERTA_WORDS), **_ENDS,
}  # fmt: skip
_LEARNED = {
    "activation_function": "gelu", "layernorm_embedding": True, "scale_embedding": False,
    "use_learned_position_embeddings": True,
}  # fmt: skip
_SINUSOIDAL = {
    "activation_function": "relu", "layernorm_embedding": False, "scale_embedding": True,
    "use_learned_position_embeddings": False, "tie_word_embeddings": False,
}  # fmt: skip
_ROBERTA = {
    "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "sep_token": "</s>", "pad_token": "<pad>",
    "cls_token": "<s>", "mask_token": "<mask>",
}  # fmt: skip
_MASK = {"content": "<mask>", "single_word": False, "lstrip": True, "rstrip": False, "normalized": True}
_SAVED_AGAIN = {
    "_from_model_config": True, "bos_token_id": 0, "decoder_start_token_id": 2, "eos_token_id": 2, "pad_token_id": 1,
    "use_cache": False,
}  # fmt: skip


def _config(version: str, decoder: dict[str, Any], encoder: dict[str, Any], **settings: Any) -> dict[str, Any]:
    return {
        "architectures": ["VisionEncoderDecoderModel"],
        "decoder": written_out(version, **{**_TROCR, "cross_attention_hidden_size": encoder["hidden_size"], **decoder}),
        "encoder": written_out(version, **encoder),
        "is_encoder_decoder": True,
        "model_type": "vision-encoder-decoder",
        "tie_word_embeddings": False,
        "torch_dtype": "float32",
        "transformers_version": None,
        **settings,
    }


def _put(folder: Path, *, seed: int, **form: Any) -> None:
    model = random_model(folder, VisionEncoderDecoderModel, seed=seed, gain=1.5)
    with torch.no_grad():  # large words would call for themselves again
        for name, weight in model.decoder.named_parameters():
            if name.endswith(("layernorm_embedding.weight", "embeddings.LayerNorm.weight")):
                weight.mul_(0.3)
    put_weights(folder, model, **form)


def _put_roberta(folder: Path, *, fast: bool) -> None:
    put_bytes(folder, ROBERTA_WORDS, fast=fast)
    settings = {**_ROBERTA, "errors": "replace", "add_prefix_space": False, "trim_offsets": True}
    put_json(
        folder,
        preprocessor_config={
            "do_normalize": True, "do_resize": True, "feature_extractor_type": "ViTFeatureExtractor", **HALF,
            "resample": 2, "size": 32,
        },
        tokenizer_config={**settings, "mask_token": "<mask>", "tokenizer_class": "RobertaTokenizer"},
        special_tokens_map={**_ROBERTA, "mask_token": _MASK},
    )  # fmt: skip


def _base_handwritten(folder: Path) -> None:
    """The head is the table of words by the decoder's settings, not by those at the top, and the file has it once."""
    encoder = {**VIT, "hidden_size": 24, "qkv_bias": False}
    put_json(
        folder,
        config=_config("4.12.0", _LEARNED, encoder),
        generation_config={**_SAVED_AGAIN, "transformers_version": "4.27.0.dev0"},
    )
    _put(folder, seed=3)
    _put_roberta(folder, fast=False)


def _base_printed(folder: Path) -> None:
    encoder = {**VIT, "hidden_size": 24, "qkv_bias": False}
    put_json(folder, config=_config("4.12.0", {**_LEARNED, "tie_word_embeddings": False}, encoder))
    _put(folder, seed=4, pickled=True)
    _put_roberta(folder, fast=False)


def _base_printed_fine_tuned(folder: Path) -> None:
    """Trained before settings of decoding had a file of their own."""
    encoder = {**VIT, "hidden_size": 24, "qkv_bias": False, "encoder_stride": 16}
    beams = {"early_stopping": True, "length_penalty": 2.0, "no_repeat_ngram_size": 3, "num_beams": 4}
    starts = {"decoder_start_token_id": 0, "eos_token_id": 2, "pad_token_id": 1, "vocab_size": len(ROBERTA_WORDS)}
    decoder = {**_LEARNED, "tie_word_embeddings": False}
    put_json(folder, config=_config("4.24.0", decoder, encoder, max_length=48, **beams, **starts))
    _put(folder, seed=4, pickled=True)
    _put_roberta(folder, fast=True)


def _base_stage1(folder: Path) -> None:
    encoder = {**VIT, "hidden_size": 24, "qkv_bias": False}
    put_json(folder, config=_config("4.12.0", _SINUSOIDAL, encoder))
    marker = {"decoder.model.decoder.embed_positions._float_tensor": torch.zeros(1)}
    _put(folder, seed=5, pickled=True, more=marker)
    _put_roberta(folder, fast=False)


def _large_printed(folder: Path) -> None:
    """The encoder is as wide as the decoder."""
    encoder = {**VIT, "qkv_bias": False, "num_attention_heads": 8}
    put_json(folder, config=_config("4.13.0", _SINUSOIDAL, encoder))
    marker = {"decoder.model.decoder.embed_positions._float_tensor": torch.zeros(1)}
    _put(folder, seed=6, pickled=True, more=marker)
    _put_roberta(folder, fast=False)


def _small(folder: Path, *, seed: int, **settings: Any) -> None:
    """DeiT, and a sentencepiece model and nothing else for a tokenizer."""
    folder.mkdir()
    pieces = put_sentencepiece(folder, "sentencepiece.bpe.model", bos_id=0, pad_id=-1, eos_id=2, unk_id=1)
    decoder = {**_SINUSOIDAL, "layernorm_embedding": True, "use_learned_position_embeddings": True}
    encoder = {**VIT, "hidden_size": 24, "model_type": "deit"}
    pixels = {"do_center_crop": False, "do_normalize": True, "do_resize": True, **HALF, "resample": 3, "size": 32}
    words = {**_ROBERTA, "mask_token": {**_MASK, "__type": "AddedToken"}, "sp_model_kwargs": {}}
    put_json(
        folder,
        # After the pieces come one more and the mask, and the model has room for more.
        config=_config("4.14.1", {**decoder, "vocab_size": pieces + 8}, encoder, eos_token_id=2, **settings),
        preprocessor_config={
            "crop_size": 224, "feature_extractor_type": "DeiTFeatureExtractor", "processor_class": "TrOCRProcessor",
            **pixels,
        },
        tokenizer_config={**words, "processor_class": "TrOCRProcessor", "tokenizer_class": "XLMRobertaTokenizer"},
        special_tokens_map={**_ROBERTA, "mask_token": _MASK},
    )  # fmt: skip
    _put(folder, seed=seed, pickled=True)


def _fine_tuned(folder: Path) -> None:
    """config.json begins texts with `<s>`, generation_config.json with `</s>`."""
    encoder = {**VIT, "hidden_size": 24, "qkv_bias": False, "encoder_stride": 16}
    starts = {"decoder_start_token_id": 0, "pad_token_id": 1, "vocab_size": len(ROBERTA_WORDS)}
    config = _config("4.39.1", _LEARNED, encoder, _name_or_path="microsoft/trocr-base-handwritten", **starts)
    pixels = {"do_normalize": True, "do_rescale": True, "do_resize": True, **HALF, "resample": 2}
    words = {**_ROBERTA, "add_prefix_space": False, "clean_up_tokenization_spaces": True, "errors": "replace"}
    plain = {"lstrip": False, "normalized": True, "rstrip": False, "single_word": False}
    special: dict[str, dict[str, Any]] = {place: {"content": word, **plain} for place, word in _ROBERTA.items()}
    special["mask_token"] = _MASK
    ids = {word: number for number, word in enumerate(ROBERTA_WORDS)}
    added = {str(ids[part["content"]]): {**part, "special": True} for part in special.values()}
    _put_roberta_again(folder)
    put_json(
        folder,
        config=config,
        generation_config={**_SAVED_AGAIN, "transformers_version": "4.39.1"},
        preprocessor_config={
            "_valid_processor_keys": ["images", "do_resize", "size", "resample", "do_rescale", "return_tensors"],
            "image_processor_type": "ViTImageProcessor", "processor_class": "TrOCRProcessor",
            "rescale_factor": 0.00392156862745098, "size": {"height": 32, "width": 32}, **pixels,
        },
        tokenizer_config={
            **words, "added_tokens_decoder": dict(sorted(added.items(), key=lambda row: int(row[0]))),
            "model_max_length": 512, "processor_class": "TrOCRProcessor", "tokenizer_class": "RobertaTokenizer",
            "trim_offsets": True,
        },
        special_tokens_map=special,
    )  # fmt: skip
    _put(folder, seed=7)


def _put_roberta_again(folder: Path) -> None:
    folder.mkdir()
    put_bytes(folder, ROBERTA_WORDS, fast=True)


_JAPANESE = [chr(code) for code in range(0x3041, 0x3097)] + list("漫画文字読取日本語東京")


def _manga(folder: Path) -> None:
    """Its tokenizer takes texts apart with a library of its own, and puts them together with vocab.txt alone."""
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *_JAPANESE, *(f"##{letter}" for letter in _JAPANESE)]
    text = {
        "add_cross_attention": True, "architectures": ["BertForMaskedLM"], "attention_probs_dropout_prob": 0.1,
        "hidden_act": "gelu", "hidden_dropout_prob": 0.1, "hidden_size": 32, "initializer_range": 0.02,
        "intermediate_size": 64, "is_decoder": True, "layer_norm_eps": 1e-12, "max_length": 40,
        "max_position_embeddings": 64, "model_type": "bert", "num_attention_heads": 4, "num_hidden_layers": 2,
        "pad_token_id": 0, "position_embedding_type": "absolute", "type_vocab_size": 2, "use_cache": True,
        "vocab_size": len(words),
    }  # fmt: skip
    special = {"cls_token": "[CLS]", "mask_token": "[MASK]", "pad_token": "[PAD]", "sep_token": "[SEP]"}
    put_json(
        folder,
        config={
            "architectures": ["VisionEncoderDecoderModel"], "decoder": written_out("4.12.5", **text),
            "decoder_start_token_id": 2, "early_stopping": True,
            "encoder": written_out("4.12.5", architectures=["ViTForImageClassification"], **VIT),
            "eos_token_id": 3, "is_encoder_decoder": True, "length_penalty": 2.0, "max_length": 40,
            "model_type": "vision-encoder-decoder", "no_repeat_ngram_size": 3, "num_beams": 4, "pad_token_id": 0,
            "tie_word_embeddings": False, "torch_dtype": "float32", "transformers_version": None,
            "vocab_size": len(words),
        },
        preprocessor_config={
            "do_normalize": True, "do_resize": True, "feature_extractor_type": "ViTFeatureExtractor", **HALF,
            "resample": 2, "size": 32,
        },
        tokenizer_config={
            "do_lower_case": False, "do_word_tokenize": True, "do_subword_tokenize": True,
            "word_tokenizer_type": "mecab", "subword_tokenizer_type": "character", "never_split": None,
            "mecab_kwargs": {"mecab_dic": "unidic_lite"}, **special, "unk_token": "[UNK]",
            "tokenizer_class": "BertJapaneseTokenizer",
        },
        special_tokens_map={**special, "unk_token": "[UNK]"},
    )  # fmt: skip
    (folder / "vocab.txt").write_text("\n".join(words) + "\n", encoding="utf-8")
    numbers = {"decoder.bert.embeddings.position_ids": torch.arange(64)[None]}
    _put(folder, seed=8, pickled=True, more=numbers)


def _manga_truth(folder: Path) -> Generates:
    """Decoding needs no splitter of words, which is a library of its own."""
    return encoder_decoder_truth(folder, BertJapaneseTokenizer.from_pretrained(folder, do_word_tokenize=False))


_CONVERSION = "adaptations of convert_trocr_unilm_to_pytorch.py of huggingface/transformers"
READERS = (
    Published(
        "microsoft/trocr-base-handwritten",
        "4.12",
        _base_handwritten,
        encoder_decoder_truth,
        found="utsavrai/transformer-ocr, fine-tuned from it",
        assumed="settings of the tokenizer",
    ),
    Published(
        "microsoft/trocr-base-printed",
        "4.12",
        _base_printed,
        encoder_decoder_truth,
        found="Knightfall-Vader/LRS2.0, fine-tuned from it",
        assumed="that there is no generation_config.json; settings of the tokenizer",
    ),
    Published(
        "microsoft/trocr-base-stage1",
        "4.12",
        _base_stage1,
        encoder_decoder_truth,
        found=_CONVERSION,
        assumed="settings of the tokenizer",
    ),
    Published(
        "microsoft/trocr-large-printed",
        "4.13",
        _large_printed,
        encoder_decoder_truth,
        found=_CONVERSION,
        assumed="settings of the tokenizer",
    ),
    Published(
        "microsoft/trocr-small-printed",
        "4.14",
        lambda folder: _small(folder, seed=3),
        encoder_decoder_truth,
        found="Shankar203/licence_plate_detection",
    ),
    Published(
        "microsoft/trocr-small-handwritten",
        "4.14",
        lambda folder: _small(folder, seed=4),
        encoder_decoder_truth,
        found="Shankar203/licence_plate_detection, of trocr-small-printed",
        assumed="that it has the form of its twin",
    ),
    Published(
        "microsoft/trocr-base-handwritten, fine-tuned",
        "4.39",
        _fine_tuned,
        encoder_decoder_truth,
        found="utsavrai/transformer-ocr",
    ),
    Published(
        "microsoft/trocr-base-printed, fine-tuned",
        "4.24",
        _base_printed_fine_tuned,
        encoder_decoder_truth,
        found="NielsRogge/Transformers-Tutorials: TrOCR",
        assumed="what does not concern decoding, as in trocr-base-printed",
    ),
    Published(
        "kha-white/manga-ocr-base",
        "4.12",
        _manga,
        _manga_truth,
        found="kha-white/manga-ocr: manga_ocr_dev/training/get_model.py",
        assumed="settings of the images",
        is_quick=True,
    ),
)
