"""BLIP on the shelf: captioners, an answerer, and a matcher of images and texts."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch.nn import functional as F
from transformers import (
    AutoProcessor,
    BlipForConditionalGeneration,
    BlipForImageTextRetrieval,
    BlipForQuestionAnswering,
)

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
    written_out,
)
from tests.parity.shelf.truths import TEXTS, Answer, Embeds, Generates, Truth, answer_of, generate
from tests.parity.shelf.vocabularies import BERT_WORDS, put_bert

__all__ = ["BERT", "BLIPS", "CLIP_PIXELS"]

CLIP_PIXELS = {
    "image_mean": [0.48145466, 0.4578275, 0.40821073],
    "image_std": [0.26862954, 0.26130258, 0.27577711],
}
BERT = {
    "cls_token": "[CLS]", "mask_token": "[MASK]", "pad_token": "[PAD]", "sep_token": "[SEP]", "unk_token": "[UNK]",
}  # fmt: skip
# Two words more than the tokenizer has: those that begin what is decoded and what is encoded.
_TEXT = {
    "attention_probs_dropout_prob": 0.0, "bos_token_id": len(BERT_WORDS), "eos_token_id": 2, "hidden_act": "gelu",
    "hidden_dropout_prob": 0.0, "hidden_size": 32, "initializer_factor": 1.0, "initializer_range": 0.02,
    "intermediate_size": 64, "is_decoder": True, "layer_norm_eps": 1e-12, "max_position_embeddings": 64,
    "model_type": "blip_text_model", "num_attention_heads": 4, "num_hidden_layers": 2, "pad_token_id": 0,
    "projection_dim": 32, "sep_token_id": 102, "use_cache": True, "vocab_size": len(BERT_WORDS) + 2,
}  # fmt: skip
_VISION = {
    "attention_dropout": 0.0, "dropout": 0.0, "hidden_act": "gelu", "hidden_size": 32, "image_size": 32,
    "initializer_factor": 1.0, "initializer_range": 0.02, "intermediate_size": 64, "layer_norm_eps": 1e-05,
    "model_type": "blip_vision_model", "num_attention_heads": 4, "num_channels": 3, "num_hidden_layers": 2,
    "patch_size": 8, "projection_dim": 24,
}  # fmt: skip
_TOP = {
    "image_text_hidden_size": 16, "initializer_factor": 1.0, "logit_scale_init_value": 2.6592, "model_type": "blip",
    "projection_dim": 24, "torch_dtype": "float32",
}  # fmt: skip
_PIXELS = {
    "do_normalize": True, "do_resize": True, **CLIP_PIXELS, "image_processor_type": "BlipImageProcessor",
    "processor_class": "BlipProcessor",
}  # fmt: skip
_LATER_PIXELS = {**_PIXELS, **RESCALED, "resample": 3, "size": {"height": 32, "width": 32}}
_SETTINGS = {
    **BERT, "do_basic_tokenize": True, "do_lower_case": True, "model_input_names": ["input_ids", "attention_mask"],
    "model_max_length": 512, "never_split": None, "processor_class": "BlipProcessor", "strip_accents": None,
    "tokenize_chinese_chars": True, "tokenizer_class": "BertTokenizer",
}  # fmt: skip


def _put(folder: Path, model_class: Any, *, seed: int, version: str = "4.26.0.dev0", wide: bool = False) -> None:
    """As the authors saved them: parts written out, no generation_config.json, the side of an image as one number."""
    vision = {**_VISION, "hidden_size": 48} if wide else _VISION
    text = {**_TEXT, "encoder_hidden_size": 48} if wide else _TEXT
    put_json(
        folder,
        config={
            "_commit_hash": None, "architectures": [model_class.__name__], **_TOP,
            "text_config": written_out(version, **text), "transformers_version": None,
            "vision_config": written_out(version, **vision),
        },
        preprocessor_config={**_PIXELS, "size": 32},
        special_tokens_map=BERT,
        tokenizer_config={**_SETTINGS, "name_or_path": "bert-base-uncased", "special_tokens_map_file": None},
    )  # fmt: skip
    put_bert(folder)
    _put_blip_weights(folder, model_class, seed=seed, pickled=True)


def _put_blip_weights(folder: Path, model_class: Any, *, seed: int, pickled: bool) -> None:
    model = random_model(folder, model_class, seed=seed, gain=1.3)
    texts = [name for name in ("text_decoder.bert", "text_encoder") if hasattr(model, name.partition(".")[0])]
    put_weights(folder, model, pickled=pickled, more=position_ids(dict.fromkeys(texts, 64)) if pickled else None)


def _fine_tuned(folder: Path) -> None:
    """Saved again: only what is not as the configuration has it by default, and generation_config.json."""
    kept = ("bos_token_id", "initializer_factor", "model_type", "num_attention_heads", "sep_token_id")
    small = ("hidden_size", "intermediate_size", "max_position_embeddings", "num_hidden_layers", "projection_dim")
    text = {key: _TEXT[key] for key in sorted((*kept, *small, "vocab_size"))}
    vision = {key: value for key, value in _VISION.items() if key not in ("attention_dropout", "hidden_act")}
    ids = {word: number for number, word in enumerate(BERT_WORDS)}
    put_json(
        folder,
        config={
            "_name_or_path": "Salesforce/blip-image-captioning-base",
            "architectures": ["BlipForConditionalGeneration"], **_TOP, "initializer_range": 0.02, "text_config": text,
            "transformers_version": "4.36.0.dev0", "vision_config": vision,
        },
        generation_config={
            "_from_model_config": True, "bos_token_id": _TEXT["bos_token_id"], "eos_token_id": 2, "pad_token_id": 0,
            "transformers_version": "4.36.0.dev0",
        },
        preprocessor_config={**_LATER_PIXELS, "do_convert_rgb": True},
        special_tokens_map=BERT,
        tokenizer_config={
            "added_tokens_decoder": added_tokens({ids[word]: word for word in BERT.values()}),
            "clean_up_tokenization_spaces": True, **_SETTINGS, "trust_remote_code": False,
        },
    )  # fmt: skip
    put_bert(folder)
    _put_blip_weights(folder, BlipForConditionalGeneration, seed=5, pickled=False)


def _captions(folder: Path) -> Generates:
    model = BlipForConditionalGeneration.from_pretrained(folder, local_files_only=True).eval()
    processor = AutoProcessor.from_pretrained(folder, local_files_only=True, backend="pil")

    def answer(picture: Any, text: str | None, beams: int | None) -> Answer:
        inputs = processor(images=picture, return_tensors="pt")
        return answer_of(processor, generate(model, beams, pixel_values=inputs.pixel_values), 1, [102])

    return Generates(answer)


def _answers(folder: Path) -> Generates:
    model = BlipForQuestionAnswering.from_pretrained(folder, local_files_only=True).eval()
    processor = AutoProcessor.from_pretrained(folder, local_files_only=True, backend="pil")

    def answer(picture: Any, text: str | None, beams: int | None) -> Answer:
        return answer_of(processor, generate(model, beams, **processor(picture, text, return_tensors="pt")), 1, [102])

    return Generates(answer, asks=True)


def _matches(folder: Path) -> Embeds:
    model = BlipForImageTextRetrieval.from_pretrained(folder, local_files_only=True).eval()
    processor = AutoProcessor.from_pretrained(folder, local_files_only=True, backend="pil")

    def embed(picture: Any, text: str) -> tuple[Any, Any]:
        with torch.no_grad():
            output = model(**processor(images=picture, text=text, return_tensors="pt"), use_itm_head=False)
            image = F.normalize(model.vision_proj(output.last_hidden_state[:, 0]), dim=-1)
            words = F.normalize(model.text_proj(output.question_embeds[:, 0]), dim=-1)
        torch.testing.assert_close(image @ words.T, output.itm_score)
        return image[0].numpy(), words[0].numpy()

    def match(picture: Any, text: str) -> float:
        with torch.no_grad():
            scores = model(**processor(images=picture, text=text, return_tensors="pt"), use_itm_head=True).itm_score[0]
        return float(scores[1] - scores[0])

    return Embeds(embed, TEXTS, match)


_PLACES = "botextractai/ai-image-captioning, vs7755/Image-Caption-Generator, YellowPerson792/ByteCaption"


def _twin(name: str, model_class: Any, truth: Callable[[Path], Truth], **form: Any) -> Published:
    """As blip-image-captioning-base but for the class, as far as is known."""
    return Published(
        f"Salesforce/{name}",
        "4.26",
        lambda folder: _put(folder, model_class, **form),
        truth,
        found=Found(Origin.TWIN, Origin.NONE, Origin.TWIN, Origin.TWIN),
        places=f"{_PLACES}: blip-image-captioning-base",
    )


BLIPS = (
    Published(
        "Salesforce/blip-image-captioning-base",
        "4.26",
        lambda folder: _put(folder, BlipForConditionalGeneration, seed=3),
        _captions,
        found=Found(Origin.OWN, Origin.NONE, Origin.OWN, Origin.USUAL),
        places=f"{_PLACES}, whaler404/Hf-Learn",
        is_quick=True,
    ),
    Published(
        "Salesforce/blip-image-captioning-large",
        "4.26",
        lambda folder: _put(folder, BlipForConditionalGeneration, seed=4, wide=True),
        _captions,
        found=Found(Origin.AGAIN, Origin.NONE, Origin.TWIN, Origin.TWIN),
        places="ngclara07/CM3070-Final-Project",
    ),
    Published(
        "Salesforce/blip-image-captioning-base, fine-tuned",
        "4.36",
        _fine_tuned,
        _captions,
        found=Found(Origin.OWN, Origin.OWN, Origin.USUAL, Origin.USUAL),
        places="livingtonds/cpc",
    ),
    _twin("blip-vqa-base", BlipForQuestionAnswering, _answers, seed=3),
    _twin("blip-vqa-capfilt-large", BlipForQuestionAnswering, _answers, seed=4, version="4.27.0.dev0"),
    _twin("blip-itm-base-coco", BlipForImageTextRetrieval, _matches, seed=3),
)
