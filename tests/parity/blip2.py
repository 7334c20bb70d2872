"""BLIP-2 for `check_families.py`: models of any size with random weights, called as the documentation has it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from tokenizers import pre_tokenizers
from torch import Tensor
from transformers import (
    AutoProcessor,
    Blip2Config,
    Blip2ForConditionalGeneration,
    Blip2Processor,
    GPT2Tokenizer,
    T5Tokenizer,
)
from transformers.models.blip.image_processing_pil_blip import BlipImageProcessorPil

from tests.parity.parity import Reference, randomize

__all__ = ["answerer", "captioner", "save_blip2"]

_FLAN_T5_XL = {
    "d_model": 2048,
    "d_ff": 5120,
    "d_kv": 64,
    "num_heads": 32,
    "num_layers": 24,
    "vocab_size": 32128,
    "feed_forward_proj": "gated-gelu",
    "tie_word_embeddings": False,
    "decoder_start_token_id": 0,
    "bos_token_id": 1,
}
_MERGES = (("Ġ", "a"), ("Ġ", "r"), ("Ġr", "e"), ("Q", "u"), ("Ġ", "t"), ("Ġt", "h"))


def save_blip2(folder: Path, image_size: int, language: str = "opt", **sizes: Any) -> Path:
    """A BLIP-2 with random weights in `folder`.

    Args:
        language: `opt` or `t5`.
        sizes: `vision`, `queries` and `text`, what their configurations take by name, else as large as in the model
            with OPT-2.7b or Flan-T5-xl; `query_tokens`, 32.
    """
    tokenizer = opt_tokenizer() if language == "opt" else t5_tokenizer()
    pictures = BlipImageProcessorPil(size={"height": image_size, "width": image_size})
    processor = Blip2Processor(pictures, tokenizer, num_query_tokens=sizes.get("query_tokens", 32))
    text = _opt_config(tokenizer) if language == "opt" else _FLAN_T5_XL
    config = Blip2Config(
        vision_config={"image_size": image_size, **sizes.get("vision", {})},
        qformer_config=sizes.get("queries", {}),
        text_config={"model_type": language, **text, **sizes.get("text", {})},
        num_query_tokens=processor.num_query_tokens,
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
    )
    torch.manual_seed(0)
    model = Blip2ForConditionalGeneration(config)
    randomize(model)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


def _opt_config(tokenizer: GPT2Tokenizer) -> dict[str, Any]:
    """OPT-2.7b, which in BLIP-2 ends a text with a new line."""
    return {
        "num_hidden_layers": 32,
        "hidden_size": 2560,
        "ffn_dim": 10240,
        "num_attention_heads": 32,
        "vocab_size": 50304,
        "bos_token_id": 2,
        "eos_token_id": tokenizer.convert_tokens_to_ids("Ċ"),
        "pad_token_id": 1,
    }


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


def t5_tokenizer() -> T5Tokenizer:
    """A tokenizer as T5 has it, `</s>` after every text, that spells every text of ASCII with few words."""
    signs = [chr(code) for code in range(33, 127)]
    words = ["▁a", "▁red", "▁the", "▁Question", "▁", *signs]
    return T5Tokenizer([("<pad>", 0.0), ("</s>", 0.0), ("<unk>", -9.0), *((word, -2.0) for word in words)], extra_ids=0)


def captioner(folder: Path) -> Reference:
    """BLIP-2 for captioning. What T5's encoder reads for every caption is its answer to any question."""
    return _reference(folder, answers=False)


def answerer(folder: Path) -> Reference:
    """BLIP-2 for visual question answering: the answer is what comes after the question's prompt."""
    return _reference(folder, answers=True)


def _reference(folder: Path, *, answers: bool) -> Reference:
    model = Blip2ForConditionalGeneration.from_pretrained(folder, local_files_only=True).eval()
    processor = AutoProcessor.from_pretrained(folder, local_files_only=True, backend="pil")
    text = model.config.text_config
    start = (*[model.config.image_token_index] * model.config.num_query_tokens, text.bos_token_id)
    if text.is_encoder_decoder:
        start = (text.decoder_start_token_id,)

    def pixels(pictures: Sequence[Any]) -> Tensor:
        found: Tensor = processor(images=list(pictures), return_tensors="pt").pixel_values
        return found

    def with_image(question_ids: Tensor) -> Tensor:
        image = torch.full((len(question_ids), model.config.num_query_tokens), model.config.image_token_index)
        return torch.cat((image, question_ids), 1)

    def logits(pixel_values: Tensor, ids: Tensor, question_ids: Tensor | None) -> Tensor:
        read = {"input_ids": ids}
        if text.is_encoder_decoder and question_ids is not None:
            read = {"input_ids": with_image(question_ids), "decoder_input_ids": ids}
        found: Tensor = model(pixel_values=pixel_values, **read).logits
        return found

    def generate(pixel_values: Tensor, question_ids: Tensor | None, **settings: Any) -> Tensor:
        if question_ids is None:
            found: Tensor = model.generate(pixel_values, **settings)
            return found
        prompt = with_image(question_ids)
        found = model.generate(pixel_values, prompt, torch.ones_like(prompt), **settings)
        length = len(start) if text.is_encoder_decoder else prompt.shape[1]
        return torch.cat((torch.tensor([start]), found[:, length:]), 1)

    def question_ids(question: str) -> Tensor:
        if not answers:
            return torch.tensor([[text.bos_token_id]])
        found: Tensor = processor(text=f"Question: {question} Answer:", return_tensors="pt").input_ids
        return found

    return Reference(
        pixels,
        logits,
        generate,
        vocabulary=model.config.image_token_index,
        start=start,
        ends=(text.eos_token_id,),
        question_ids=question_ids if answers or text.is_encoder_decoder else None,
    )
