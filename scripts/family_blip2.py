"""BLIP-2 for `check_families.py`: models of any size with random weights, called as the documentation has it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from family_parity import Reference, randomize
from PIL import Image
from tokenizers import pre_tokenizers
from torch import Tensor
from transformers import AutoProcessor, Blip2Config, Blip2ForConditionalGeneration, Blip2Processor, GPT2Tokenizer
from transformers.models.blip.image_processing_pil_blip import BlipImageProcessorPil

__all__ = ["answerer", "captioner", "opt_tokenizer", "save_blip2"]

_MERGES = (("Ġ", "a"), ("Ġ", "r"), ("Ġr", "e"), ("Q", "u"), ("Ġ", "t"), ("Ġt", "h"))


def save_blip2(folder: Path, image_size: int, **sizes: Any) -> Path:
    """A BLIP-2 with OPT and random weights in `folder`.

    Args:
        sizes: `vision`, `queries` and `text`, what their configurations take by name, else as large as in the model
            with OPT-2.7b; `query_tokens`, 32.
    """
    tokenizer = opt_tokenizer()
    pictures = BlipImageProcessorPil(size={"height": image_size, "width": image_size})
    processor = Blip2Processor(pictures, tokenizer, num_query_tokens=sizes.get("query_tokens", 32))
    ends = {"bos_token_id": 2, "eos_token_id": tokenizer.convert_tokens_to_ids("Ċ"), "pad_token_id": 1}
    text = {"hidden_size": 2560, "ffn_dim": 10240, "num_attention_heads": 32, "vocab_size": 50304}
    config = Blip2Config(
        vision_config={"image_size": image_size, **sizes.get("vision", {})},
        qformer_config=sizes.get("queries", {}),
        text_config={"model_type": "opt", "num_hidden_layers": 32, **text, **ends, **sizes.get("text", {})},
        num_query_tokens=processor.num_query_tokens,
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
    )
    torch.manual_seed(0)
    model = Blip2ForConditionalGeneration(config)
    randomize(model)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


def opt_tokenizer() -> GPT2Tokenizer:
    """A tokenizer as OPT has it, `</s>` before every text, that spells every text with few words."""
    signs = sorted(pre_tokenizers.ByteLevel.alphabet())
    words = ["<s>", "<pad>", "</s>", "<unk>", *signs, *("".join(pair) for pair in _MERGES)]
    special = dict.fromkeys(("bos_token", "eos_token", "unk_token"), "</s>")
    return GPT2Tokenizer(
        vocab={word: number for number, word in enumerate(words)},
        merges=list(_MERGES),
        pad_token="<pad>",
        add_bos_token=True,
        **special,
    )


def captioner(folder: Path) -> Reference:
    """BLIP-2 for captioning."""
    return _reference(folder, answers=False)


def answerer(folder: Path) -> Reference:
    """BLIP-2 for visual question answering: the answer is what comes after the question's prompt."""
    return _reference(folder, answers=True)


def _reference(folder: Path, *, answers: bool) -> Reference:
    model = Blip2ForConditionalGeneration.from_pretrained(folder, local_files_only=True).eval()
    processor = AutoProcessor.from_pretrained(folder, local_files_only=True, backend="pil")
    text = model.config.text_config
    start = (*[model.config.image_token_index] * model.config.num_query_tokens, text.bos_token_id)

    def pixels(pictures: Sequence[Any]) -> Tensor:
        found: Tensor = processor(images=list(pictures), return_tensors="pt").pixel_values
        return found

    def logits(pixel_values: Tensor, ids: Tensor, question_ids: Tensor | None) -> Tensor:
        found: Tensor = model(pixel_values=pixel_values, input_ids=ids).logits
        return found

    def generate(pixel_values: Tensor, question_ids: Tensor | None, **settings: Any) -> Tensor:
        if question_ids is None:
            found: Tensor = model.generate(pixel_values, **settings)
            return found
        found = model.generate(pixel_values, question_ids, torch.ones_like(question_ids), **settings)
        return torch.cat((found[:, : len(start)], found[:, question_ids.shape[1] :]), 1)

    def question_ids(question: str) -> Tensor:
        blank = Image.new("RGB", (8, 8))
        found: Tensor = processor(blank, f"Question: {question} Answer:", return_tensors="pt").input_ids
        return found

    return Reference(
        pixels,
        logits,
        generate,
        vocabulary=model.config.image_token_index,
        start=start,
        ends=(text.eos_token_id,),
        question_ids=question_ids if answers else None,
    )
