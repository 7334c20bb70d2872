"""GIT for `check_families.py`: models of any size with random weights, called as Transformers' documentation has it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoProcessor, BertTokenizer, GitConfig, GitForCausalLM, GitProcessor
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from tests.parity.parity import Reference, randomize

__all__ = ["answerer", "captioner", "save_git"]


def save_git(folder: Path, words: Sequence[str], image_size: int, **sizes: Any) -> Path:
    """A GIT with random weights in `folder`.

    Args:
        words: the vocabulary, with `[CLS]` and `[SEP]`.
        sizes: `text` and `vision`, what their configurations take by name; else as large as GIT-base.
    """
    ends = {"bos_token_id": list(words).index("[CLS]"), "eos_token_id": list(words).index("[SEP]"), "pad_token_id": 0}
    config = GitConfig(
        vocab_size=len(words),
        vision_config={"image_size": image_size, **sizes.get("vision", {})},
        **ends,
        **sizes.get("text", {}),
    )
    torch.manual_seed(0)
    model = GitForCausalLM(config)
    randomize(model)
    model.save_pretrained(folder)
    side = {"height": image_size, "width": image_size}
    pictures = CLIPImageProcessorPil(size={"shortest_edge": image_size}, crop_size=side)
    tokenizer = BertTokenizer({word: number for number, word in enumerate(words)})
    GitProcessor(pictures, tokenizer).save_pretrained(folder)
    return folder


def captioner(folder: Path) -> Reference:
    """GIT for captioning."""
    return _reference(folder, answers=False)


def answerer(folder: Path) -> Reference:
    """GIT for visual question answering: the answer is what comes after [CLS] and the question."""
    return _reference(folder, answers=True)


def _reference(folder: Path, *, answers: bool) -> Reference:
    model = GitForCausalLM.from_pretrained(folder, local_files_only=True).eval()
    processor = AutoProcessor.from_pretrained(folder, local_files_only=True, backend="pil")
    start = model.config.bos_token_id
    image_tokens = model.git.image_encoder.vision_model.embeddings.num_positions

    def pixels(pictures: Sequence[Any]) -> Tensor:
        found: Tensor = processor(images=list(pictures), return_tensors="pt").pixel_values
        return found

    def logits(pixel_values: Tensor, ids: Tensor, question_ids: Tensor | None) -> Tensor:
        found: Tensor = model(ids, pixel_values=pixel_values, use_cache=False).logits[:, image_tokens:]
        return found

    def generate(pixel_values: Tensor, question_ids: Tensor | None, **settings: Any) -> Tensor:
        if question_ids is None:
            found: Tensor = model.generate(pixel_values=pixel_values, **settings)
            return found
        prompt = torch.cat((torch.tensor([[start]]), question_ids), 1)
        found = model.generate(input_ids=prompt, pixel_values=pixel_values, **settings)
        return torch.cat((found[:, :1], found[:, prompt.shape[1] :]), 1)

    def question_ids(question: str) -> Tensor:
        return torch.tensor([processor(text=question, add_special_tokens=False).input_ids])

    return Reference(
        pixels,
        logits,
        generate,
        vocabulary=model.config.vocab_size,
        start=(start,),
        ends=(model.config.eos_token_id,),
        question_ids=question_ids if answers else None,
    )
