"""LXMERT and VisualBERT for `check_families.py`: of their base sizes with random weights, called as documented."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import (
    AutoConfig,
    BertTokenizer,
    LxmertConfig,
    LxmertForQuestionAnswering,
    VisualBertConfig,
    VisualBertForQuestionAnswering,
)

from tests.parity.parity import randomize
from xattn_runtime.loader import load

__all__ = ["answers_error", "save_lxmert", "save_visual_bert"]

COUNTS = (36, 1, 10, 100)


def save_lxmert(folder: Path, words: Sequence[str], **sizes: Any) -> Path:
    """LXMERT base: 9, 5 and 5 layers, regions of 2048 features; or other `sizes` by the configuration's names."""
    answers = sizes.pop("num_qa_labels", LxmertConfig().num_qa_labels)
    config = LxmertConfig(vocab_size=len(words), num_qa_labels=answers, **_names(answers), **sizes)
    return _save(folder, LxmertForQuestionAnswering, config, words)


def save_visual_bert(folder: Path, words: Sequence[str], answers: int = 3129, **sizes: Any) -> Path:
    """VisualBERT base with regions of 2048 features, as it was trained on VQA; or other `sizes` as for LXMERT."""
    config = VisualBertConfig(vocab_size=len(words), **{"visual_embedding_dim": 2048, **sizes}, **_names(answers))
    return _save(folder, VisualBertForQuestionAnswering, config, words)


def answers_error(
    folder: Path, bundles: Sequence[Path], files: Sequence[Path], questions: Sequence[str]
) -> tuple[float, int]:
    """Largest difference of a logit as a share of the largest, and how many bundles' answers are the model's own.

    As many sets of made-up regions as there are `files`, saved beside them, are asked the questions in turn.
    """
    lxmert = AutoConfig.from_pretrained(folder, local_files_only=True).model_type == "lxmert"
    model_class: Any = LxmertForQuestionAnswering if lxmert else VisualBertForQuestionAnswering
    model = model_class.from_pretrained(folder, local_files_only=True).eval()
    tokenizer = BertTokenizer.from_pretrained(folder, local_files_only=True)
    tasks = [load(bundle, task="vqa") for bundle in bundles]
    worst, equal = 0.0, 0
    for number, file in enumerate(files):
        question, regions = questions[number % len(questions)], _regions(number)
        np.savez(file.with_suffix(".npz"), allow_pickle=False, **regions)
        text = tokenizer(question, return_tensors="pt")
        features, boxes = (torch.from_numpy(regions[name])[None] for name in ("features", "boxes"))
        with torch.inference_mode():
            if lxmert:
                logits = model(**text, visual_feats=features, visual_pos=boxes).question_answering_score
            else:
                logits = model(**text, visual_embeds=features).logits
        expected = logits[0].numpy()
        for task in tasks:
            found = task.logits(task.encode(file.with_suffix(".npz")), question)
            worst = max(worst, float(np.abs(found - expected).max() / np.abs(expected).max()))
            equal += int(found.argmax() == expected.argmax())
    return worst, equal


def _regions(seed: int) -> dict[str, NDArray[np.float32]]:
    rng, count = np.random.default_rng(seed), COUNTS[seed % len(COUNTS)]
    features = np.maximum(rng.normal(size=(count, 2048)), 0)
    return {
        "features": features.astype(np.float32),
        "boxes": np.sort(rng.random((count, 4)), 1).astype(np.float32),
    }


def _names(answers: int) -> dict[str, Any]:
    labels = {number: f"answer {number}" for number in range(answers)}
    return {"id2label": labels, "label2id": {label: number for number, label in labels.items()}}


def _save(folder: Path, model_class: Any, config: Any, words: Sequence[str]) -> Path:
    torch.manual_seed(0)
    model = model_class(config)
    randomize(model)
    model.save_pretrained(folder)
    BertTokenizer({word: number for number, word in enumerate(words)}).save_pretrained(folder)
    return folder
