"""TrOCR and an OCR of Japanese on the shelf: readers of the VisionEncoderDecoder kind."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from transformers import BertJapaneseTokenizer, VisionEncoderDecoderModel

from tests.parity.shelf.captioners import HALF, VIT, VIT_PIXELS, encoder_decoder_config, encoder_decoder_truth
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
_MASK = token("<mask>", lstrip=True, normalized=True)
_BASE = {**VIT, "hidden_size": 24, "qkv_bias": False}
"""The encoder of the base models, narrower than the decoder."""
_TABLE = {"decoder.model.decoder.embed_positions._float_tensor": torch.zeros(1)}
"""What older versions keep beside the weights of a decoder whose places are not learned."""
_SAVED_AGAIN = {
    "_from_model_config": True, "bos_token_id": 0, "decoder_start_token_id": 2, "eos_token_id": 2, "pad_token_id": 1,
    "use_cache": False,
}  # fmt: skip


def _config(version: str, decoder: dict[str, Any], encoder: dict[str, Any], **settings: Any) -> dict[str, Any]:
    text = {**_TROCR, "cross_attention_hidden_size": encoder["hidden_size"], **decoder}
    return encoder_decoder_config(written_out(version, **text), written_out(version, **encoder), **settings)


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
        preprocessor_config=VIT_PIXELS,
        tokenizer_config={**settings, "mask_token": "<mask>", "tokenizer_class": "RobertaTokenizer"},
        special_tokens_map={**_ROBERTA, "mask_token": _MASK},
    )  # fmt: skip


def _base_handwritten(folder: Path) -> None:
    """The head is the table of words by the decoder's settings, not by those at the top, and the file has it once."""
    put_json(
        folder,
        config=_config("4.12.0", _LEARNED, _BASE),
        generation_config={**_SAVED_AGAIN, "transformers_version": "4.27.0.dev0"},
    )
    _put(folder, seed=3)
    _put_roberta(folder, fast=False)


def _base_printed(folder: Path) -> None:
    put_json(folder, config=_config("4.12.0", {**_LEARNED, "tie_word_embeddings": False}, _BASE))
    _put(folder, seed=4, pickled=True)
    _put_roberta(folder, fast=False)


def _base_printed_fine_tuned(folder: Path) -> None:
    """Trained before settings of decoding had a file of their own."""
    encoder = {**_BASE, "encoder_stride": 16}
    beams = {"early_stopping": True, "length_penalty": 2.0, "no_repeat_ngram_size": 3, "num_beams": 4}
    starts = {"decoder_start_token_id": 0, "eos_token_id": 2, "pad_token_id": 1, "vocab_size": len(ROBERTA_WORDS)}
    decoder = {**_LEARNED, "tie_word_embeddings": False}
    put_json(folder, config=_config("4.24.0", decoder, encoder, max_length=48, **beams, **starts))
    _put(folder, seed=4, pickled=True)
    _put_roberta(folder, fast=True)


def _sinusoidal(folder: Path, version: str, encoder: dict[str, Any], *, seed: int) -> None:
    put_json(folder, config=_config(version, _SINUSOIDAL, encoder))
    _put(folder, seed=seed, pickled=True, more=_TABLE)
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
    encoder = {**_BASE, "encoder_stride": 16}
    starts = {"decoder_start_token_id": 0, "pad_token_id": 1, "vocab_size": len(ROBERTA_WORDS)}
    config = _config("4.39.1", _LEARNED, encoder, _name_or_path="microsoft/trocr-base-handwritten", **starts)
    pixels = {"do_normalize": True, "do_resize": True, **HALF, **RESCALED, "resample": 2}
    words = {**_ROBERTA, "add_prefix_space": False, "clean_up_tokenization_spaces": True, "errors": "replace"}
    special = {place: token(word, normalized=True) for place, word in _ROBERTA.items()} | {"mask_token": _MASK}
    folder.mkdir()
    put_bytes(folder, ROBERTA_WORDS, fast=True)
    put_json(
        folder,
        config=config,
        generation_config={**_SAVED_AGAIN, "transformers_version": "4.39.1"},
        preprocessor_config={
            "_valid_processor_keys": ["images", "do_resize", "size", "resample", "do_rescale", "return_tensors"],
            "image_processor_type": "ViTImageProcessor", "processor_class": "TrOCRProcessor",
            "size": {"height": 32, "width": 32}, **pixels,
        },
        tokenizer_config={
            **words,
            "added_tokens_decoder": added_tokens(
                {ROBERTA_WORDS.index(part["content"]): part for part in special.values()}
            ),
            "model_max_length": 512, "processor_class": "TrOCRProcessor", "tokenizer_class": "RobertaTokenizer",
            "trim_offsets": True,
        },
        special_tokens_map=special,
    )  # fmt: skip
    _put(folder, seed=7)


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
        config=encoder_decoder_config(
            written_out("4.12.5", **text),
            written_out("4.12.5", architectures=["ViTForImageClassification"], **VIT),
            decoder_start_token_id=2, early_stopping=True, eos_token_id=3, length_penalty=2.0, max_length=40,
            no_repeat_ngram_size=3, num_beams=4, pad_token_id=0, vocab_size=len(words),
        ),
        preprocessor_config=VIT_PIXELS,
        tokenizer_config={
            "do_lower_case": False, "do_word_tokenize": True, "do_subword_tokenize": True,
            "word_tokenizer_type": "mecab", "subword_tokenizer_type": "character", "never_split": None,
            "mecab_kwargs": {"mecab_dic": "unidic_lite"}, **special, "unk_token": "[UNK]",
            "tokenizer_class": "BertJapaneseTokenizer",
        },
        special_tokens_map={**special, "unk_token": "[UNK]"},
    )  # fmt: skip
    (folder / "vocab.txt").write_text("\n".join(words) + "\n", encoding="utf-8")
    _put(folder, seed=8, pickled=True, more=position_ids({"decoder.bert": 64}))


def _manga_truth(folder: Path) -> Generates:
    """Decoding needs no splitter of words, which is a library of its own."""
    return encoder_decoder_truth(folder, BertJapaneseTokenizer.from_pretrained(folder, do_word_tokenize=False))


def _published(
    name: str,
    version: str,
    write: Callable[[Path], None],
    found: Found,
    places: str,
) -> Published:
    return Published(f"microsoft/{name}", version, write, encoder_decoder_truth, found=found, places=places)


_CONVERTED = (
    Found(Origin.PROGRAM, Origin.NONE, Origin.PROGRAM, Origin.USUAL),
    "adaptations of convert_trocr_unilm_to_pytorch.py of huggingface/transformers",
)
READERS = (
    _published(
        "trocr-base-handwritten",
        "4.12",
        _base_handwritten,
        Found(Origin.AGAIN, Origin.AGAIN, Origin.AGAIN, Origin.USUAL),
        "utsavrai/transformer-ocr, fine-tuned from it",
    ),
    _published(
        "trocr-base-printed",
        "4.12",
        _base_printed,
        Found(Origin.AGAIN, Origin.NONE, Origin.TWIN, Origin.USUAL),
        "Knightfall-Vader/LRS2.0, fine-tuned from it; utsavrai/transformer-ocr",
    ),
    _published("trocr-base-stage1", "4.12", lambda folder: _sinusoidal(folder, "4.12.0", _BASE, seed=5), *_CONVERTED),
    _published(  # the encoder is as wide as the decoder
        "trocr-large-printed",
        "4.13",
        lambda folder: _sinusoidal(folder, "4.13.0", {**VIT, "qkv_bias": False, "num_attention_heads": 8}, seed=6),
        *_CONVERTED,
    ),
    _published(
        "trocr-small-printed",
        "4.14",
        lambda folder: _small(folder, seed=3),
        Found(Origin.AGAIN, Origin.NONE, Origin.AGAIN, Origin.AGAIN),
        "Shankar203/licence_plate_detection",
    ),
    _published(
        "trocr-small-handwritten",
        "4.14",
        lambda folder: _small(folder, seed=4),
        Found(Origin.TWIN, Origin.NONE, Origin.TWIN, Origin.TWIN),
        "Shankar203/licence_plate_detection: trocr-small-printed",
    ),
    _published(
        "trocr-base-handwritten, fine-tuned",
        "4.39",
        _fine_tuned,
        Found(Origin.OWN, Origin.OWN, Origin.OWN, Origin.USUAL),
        "utsavrai/transformer-ocr",
    ),
    _published(
        "trocr-base-printed, fine-tuned",
        "4.24",
        _base_printed_fine_tuned,
        Found(Origin.PROGRAM, Origin.NONE, Origin.TWIN, Origin.TWIN),
        "NielsRogge/Transformers-Tutorials: TrOCR; those of trocr-base-printed",
    ),
    Published(
        "kha-white/manga-ocr-base",
        "4.12",
        _manga,
        _manga_truth,
        found=Found(Origin.PROGRAM, Origin.NONE, Origin.TWIN, Origin.OWN),
        places="kha-white/manga-ocr: manga_ocr_dev/training/get_model.py; deckyfx/manga-reader: docs/MANGAOCR.md",
        is_quick=True,
    ),
)
