"""ViLT for `check_families.py`: models of any size with random weights, called as its documentation has it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from transformers import AutoProcessor, BertTokenizer, ViltConfig, ViltForQuestionAnswering, ViltProcessor
from transformers.models.vilt.image_processing_pil_vilt import ViltImageProcessorPil

from tests.parity.parity import randomize
from xattn_runtime.loader import load

__all__ = ["answers_error", "save_vilt"]

SHAPES_PX = ((90, 90), (240, 120), (120, 240), (80, 240), (230, 70), (1, 1), (7, 3), (640, 480))


def save_vilt(folder: Path, words: Sequence[str], image_size: int, answers: int, **sizes: Any) -> Path:
    """A ViLT for visual question answering with random weights in `folder`, else as large as `vilt-b32`."""
    labels = {number: f"answer {number}" for number in range(answers)}
    config = ViltConfig(
        vocab_size=len(words),
        image_size=image_size,
        id2label=labels,
        label2id={label: number for number, label in labels.items()},
        **sizes,
    )
    torch.manual_seed(0)
    model = ViltForQuestionAnswering(config)
    randomize(model)
    model.save_pretrained(folder)
    tokenizer = BertTokenizer({word: number for number, word in enumerate(words)})
    pictures = ViltImageProcessorPil(size={"shortest_edge": image_size}, size_divisor=config.patch_size)
    ViltProcessor(pictures, tokenizer).save_pretrained(folder)
    return folder


def answers_error(
    folder: Path, bundles: Sequence[Path], files: Sequence[Path], questions: Sequence[str]
) -> tuple[float, int]:
    """Largest difference of a logit as a share of the largest, and how many bundles' answers are the model's own.

    Picture files are asked the questions in turn, resized to every shape of SHAPES_PX in turn.
    """
    model = ViltForQuestionAnswering.from_pretrained(folder, local_files_only=True).eval()
    processor = AutoProcessor.from_pretrained(folder, local_files_only=True, backend="pil")
    tasks = [load(bundle, task="vqa") for bundle in bundles]
    worst, equal = 0.0, 0
    for number, file in enumerate(files):
        question = questions[number % len(questions)]
        with Image.open(file) as opened:
            picture = opened.convert("RGB").resize(SHAPES_PX[number % len(SHAPES_PX)])
        with torch.inference_mode():
            expected = model(**processor(picture, question, return_tensors="pt")).logits[0].numpy()
        for task in tasks:
            found = task.logits(task.encode(picture), question)
            worst = max(worst, float(np.abs(found - expected).max() / np.abs(expected).max()))
            equal += int(found.argmax() == expected.argmax())
    return worst, equal
