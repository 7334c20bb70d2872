"""ViLT, VisualBERT and LXMERT on the shelf, which choose among answers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from transformers import (
    AutoProcessor,
    AutoTokenizer,
    LxmertForQuestionAnswering,
    ViltForQuestionAnswering,
    VisualBertForQuestionAnswering,
)

from tests.parity.shelf.blip import BERT
from tests.parity.shelf.captioners import HALF
from tests.parity.shelf.published import (
    Found,
    Origin,
    Published,
    position_ids,
    put_json,
    put_weights,
    random_model,
)
from tests.parity.shelf.truths import Chooses
from tests.parity.shelf.vocabularies import BERT_WORDS, put_bert

__all__ = ["ANSWERERS"]

_ANSWERS = ("net", "pitch", "orange", "yes", "2", "red and white", "no")
_FEATURES = 16
_BERT = {
    "attention_probs_dropout_prob": 0.1, "hidden_act": "gelu", "hidden_dropout_prob": 0.1, "hidden_size": 32,
    "initializer_range": 0.02, "intermediate_size": 64, "layer_norm_eps": 1e-12, "max_position_embeddings": 40,
    "num_attention_heads": 4, "type_vocab_size": 2, "vocab_size": len(BERT_WORDS),
}  # fmt: skip
_SETTINGS = {
    **BERT, "do_basic_tokenize": True, "do_lower_case": True, "model_max_length": 512,
    "name_or_path": "bert-base-uncased", "never_split": None, "special_tokens_map_file": None, "strip_accents": None,
    "tokenize_chinese_chars": True, "tokenizer_class": "BertTokenizer",
}  # fmt: skip


def _vilt(folder: Path) -> None:
    labels = {str(number): answer for number, answer in enumerate(_ANSWERS)}
    put_json(
        folder,
        config={
            **_BERT, "architectures": ["ViltForQuestionAnswering"], "hidden_dropout_prob": 0.0,
            "attention_probs_dropout_prob": 0.0, "id2label": labels, "image_size": 64,
            "label2id": {answer: int(number) for number, answer in labels.items()}, "max_image_length": -1,
            "modality_type_vocab_size": 2, "model_type": "vilt", "num_channels": 3, "num_hidden_layers": 2,
            "num_images": -1, "patch_size": 16, "qkv_bias": True, "tie_word_embeddings": False,
            "torch_dtype": "float32", "transformers_version": "4.16.0.dev0",
        },
        preprocessor_config={
            "do_normalize": True, "do_resize": True, "feature_extractor_type": "ViltFeatureExtractor", **HALF,
            "resample": 3, "size": 64, "size_divisor": 16,
        },
        special_tokens_map=BERT,
        tokenizer_config=_SETTINGS,
    )  # fmt: skip
    put_bert(folder)
    numbers = {"vilt.embeddings.text_embeddings.position_ids": torch.arange(40)[None]}
    put_weights(folder, random_model(folder, ViltForQuestionAnswering), pickled=True, more=numbers)


def _visual_bert(folder: Path) -> None:
    """Its answers have no names in config.json, and its tokenizer is that of BERT; both are put beside it."""
    count = len(_ANSWERS)
    put_json(
        folder,
        config={
            **_BERT, "architectures": ["VisualBertForQuestionAnswering"], "bypass_transformer": False,
            "gradient_checkpointing": False,
            "id2label": {str(number): f"LABEL_{number}" for number in range(count)},
            "label2id": {f"LABEL_{number}": number for number in range(count)}, "model_type": "visual_bert",
            "num_hidden_layers": 2, "pad_token_id": 0, "special_visual_initialize": True,
            "transformers_version": "4.6.0.dev0", "visual_embedding_dim": _FEATURES,
        },
    )  # fmt: skip
    model = random_model(folder, VisualBertForQuestionAnswering, seed=4)
    put_weights(folder, model, pickled=True, more=position_ids({"visual_bert": 40}))
    put_bert(folder, fast=False)
    (folder / "labels.txt").write_text("\n".join(_ANSWERS) + "\n", encoding="utf-8")


def _lxmert(folder: Path) -> None:
    """As VisualBERT, and older."""
    put_json(
        folder,
        config={
            **_BERT, "architectures": ["LxmertForQuestionAnswering"], "l_layers": 1,
            "model_type": "lxmert", "num_attr_labels": 400,
            "num_hidden_layers": {"cross_encoder": 1, "language": 1, "vision": 1}, "num_object_labels": 1600,
            "num_qa_labels": len(_ANSWERS), "r_layers": 1, "task_mask_lm": True, "task_matched": True,
            "task_obj_predict": True, "task_qa": True, "visual_attr_loss": True,
            "visual_feat_dim": _FEATURES, "visual_feat_loss": True, "visual_loss_normalizer": 6.67,
            "visual_obj_loss": True, "visual_pos_dim": 4, "x_layers": 2,
        },
    )  # fmt: skip
    put_weights(folder, random_model(folder, LxmertForQuestionAnswering, seed=5), pickled=True)
    put_bert(folder, fast=False)
    (folder / "labels.txt").write_text("\n".join(_ANSWERS) + "\n", encoding="utf-8")


def _about_images(folder: Path) -> Chooses:
    model = ViltForQuestionAnswering.from_pretrained(folder, local_files_only=True).eval()
    processor = AutoProcessor.from_pretrained(folder, local_files_only=True, backend="pil")

    def logits(picture: Any, question: str) -> NDArray[np.float32]:
        with torch.no_grad():
            found: NDArray[np.float32] = model(**processor(picture, question, return_tensors="pt")).logits[0].numpy()
        return found

    return Chooses(lambda picture, path: picture, logits, _ANSWERS)


def _about_regions(folder: Path, model_class: Any) -> Chooses:
    model = model_class.from_pretrained(folder, local_files_only=True).eval()
    words = AutoTokenizer.from_pretrained(folder, local_files_only=True)

    def inputs(picture: Image.Image, path: Path) -> Path:
        """Made-up regions, more of them the wider the image."""
        rng, count = np.random.default_rng(picture.height), picture.width // 8 + 1
        features = np.maximum(rng.normal(size=(count, _FEATURES)), 0).astype(np.float32)
        np.savez(path, allow_pickle=False, features=features, boxes=np.sort(rng.random((count, 4)), 1).astype("f4"))
        return path

    def logits(path: Path, question: str) -> NDArray[np.float32]:
        regions = {name: torch.from_numpy(array)[None] for name, array in np.load(path).items()}
        text, features = words(question, return_tensors="pt"), regions["features"]
        with torch.no_grad():
            if model_class is LxmertForQuestionAnswering:
                output = model(**text, visual_feats=features, visual_pos=regions["boxes"]).question_answering_score
            else:
                ones = torch.ones(features.shape[:2], dtype=torch.int64)
                output = model(
                    **text, visual_embeds=features, visual_token_type_ids=ones, visual_attention_mask=ones
                ).logits
        found: NDArray[np.float32] = output[0].numpy()
        return found

    return Chooses(inputs, logits, _ANSWERS)


ANSWERERS = (
    Published(
        "dandelin/vilt-b32-finetuned-vqa",
        "4.16",
        _vilt,
        _about_images,
        found=Found(Origin.PROGRAM, Origin.NONE, Origin.PROGRAM, Origin.USUAL),
        places="huggingface/transformers: convert_vilt_original_to_pytorch.py",
        is_quick=True,
    ),
    Published(
        "uclanlp/visualbert-vqa",
        "4.6",
        _visual_bert,
        lambda folder: _about_regions(folder, VisualBertForQuestionAnswering),
        found=Found(Origin.PROGRAM, Origin.NONE, Origin.NONE, Origin.USUAL),
        places="huggingface/transformers: convert_visual_bert_original_pytorch_checkpoint_to_pytorch.py",
    ),
    Published(
        "unc-nlp/lxmert-vqa-uncased",
        "3.1",
        _lxmert,
        lambda folder: _about_regions(folder, LxmertForQuestionAnswering),
        found=Found(Origin.OWN, Origin.NONE, Origin.NONE, Origin.USUAL),
        places="a public program that quotes config.json",
    ),
)
