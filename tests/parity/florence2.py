"""Florence-2 for `check_families.py` and the tests: models of any size, called as its documentation has it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from tokenizers.pre_tokenizers import ByteLevel
from torch import Tensor
from transformers import (
    AddedToken,
    AutoProcessor,
    BartTokenizer,
    Florence2Config,
    Florence2ForConditionalGeneration,
    Florence2Processor,
    GenerationConfig,
)
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from tests.parity.parity import Reference, randomize

__all__ = ["PROMPTS", "florence2", "save_florence2"]

PROMPTS = ("<CAPTION>", "<DETAILED_CAPTION>", "<OCR>", "what color is the circle?")
SPECIAL = ("<s>", "<pad>", "</s>", "<unk>")
TEXT = {
    "model_type": "bart",
    "d_model": 768,
    **{f"{part}_{key}": value for part in ("encoder", "decoder") for key, value in (("layers", 6), ("ffn_dim", 3072))},
    "encoder_attention_heads": 12,
    "decoder_attention_heads": 12,
}
# As in the generation_config.json of Florence-2 itself.
DECODING = {
    "num_beams": 3,
    "early_stopping": True,
    "no_repeat_ngram_size": 3,
    "forced_bos_token_id": 0,
    "forced_eos_token_id": 2,
    "decoder_start_token_id": 2,
    "bos_token_id": 0,
    "eos_token_id": 2,
    "pad_token_id": 1,
}
_SQUARES = {"do_center_crop": False, "image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225]}


def save_florence2(folder: Path, image_size: int, *, words: int = 50265, places: int = 1000, **sizes: Any) -> Path:
    """A Florence-2 with random weights in `folder`.

    Args:
        words: tokens of the vocabulary without those of places. places: how many of these.
        sizes: `text` and `vision`, what their configurations take by name; else as large as Florence-2-base.
    """
    tokenizer = _tokenizer(words, places)
    config = Florence2Config(
        # Transformers' conversion pads the vocabulary to a multiple of 64.
        text_config={**TEXT, "vocab_size": -(-len(tokenizer) // 64) * 64, **sizes.get("text", {})},
        vision_config={"projection_dim": 768, **sizes.get("vision", {})},
        image_token_id=tokenizer.image_token_id,
    )
    torch.manual_seed(0)
    model = Florence2ForConditionalGeneration(config)
    randomize(model)
    model.generation_config = GenerationConfig(**DECODING)
    model.save_pretrained(folder)
    pictures = CLIPImageProcessorPil(size={"height": image_size, "width": image_size}, **_SQUARES)
    pictures.image_seq_length = _places(config, image_size) ** 2 + 1
    processor = Florence2Processor(pictures, tokenizer, post_processor_config={"pure_text": {}})
    processor.save_pretrained(folder)
    return folder


def florence2(folder: Path) -> Reference:
    """Florence-2, as its documentation calls it: a question is a prompt."""
    model = Florence2ForConditionalGeneration.from_pretrained(folder, local_files_only=True).eval()
    processor = AutoProcessor.from_pretrained(folder, local_files_only=True, backend="pil")
    image_ids = [processor.image_token_id] * processor.num_image_tokens

    def pixels(pictures: Sequence[Image.Image]) -> Tensor:
        found: Tensor = processor.image_processor(list(pictures), return_tensors="pt").pixel_values
        return found

    def inputs(pixel_values: Tensor, question_ids: Tensor) -> dict[str, Tensor]:
        input_ids = torch.cat((torch.tensor([image_ids]).expand(len(question_ids), -1), question_ids), 1)
        return {"input_ids": input_ids, "attention_mask": torch.ones_like(input_ids), "pixel_values": pixel_values}

    def logits(pixel_values: Tensor, ids: Tensor, question_ids: Tensor | None) -> Tensor:
        found: Tensor = model(**inputs(pixel_values, _given(question_ids)), decoder_input_ids=ids).logits
        return found

    def generate(pixel_values: Tensor, question_ids: Tensor | None, **settings: Any) -> Tensor:
        found: Tensor = model.generate(**inputs(pixel_values, _given(question_ids)), **settings)
        return found

    def question_ids(question: str) -> Tensor:
        """What the processor makes of a prompt beside a picture, without the picture's places."""
        ids: Tensor = processor(images=Image.new("RGB", (8, 8)), text=question, return_tensors="pt").input_ids
        if ids[0, : len(image_ids)].tolist() != image_ids:
            raise ValueError("expected the places of the picture first")
        return ids[:, len(image_ids) :]

    return Reference(
        pixels,
        logits,
        generate,
        vocabulary=model.config.text_config.vocab_size,
        start=(DECODING["decoder_start_token_id"],),
        ends=(DECODING["eos_token_id"],),
        question_ids=question_ids,
    )


def _places(config: Florence2Config, image_size: int) -> int:
    """Rows, and columns, of the last feature map."""
    vision, side = config.vision_config, image_size
    for kernel, stride, padding in zip(vision.patch_size, vision.patch_stride, vision.patch_padding, strict=True):
        side = (side + 2 * padding - kernel) // stride + 1
    return side


def _given(question_ids: Tensor | None) -> Tensor:
    if question_ids is None:
        raise ValueError("expected a prompt: Florence-2 has one for every task")
    return question_ids


def _tokenizer(words: int, places: int) -> BartTokenizer:
    """Bytes and words that nothing is merged to, then places and what stands for a picture."""
    letters = [*SPECIAL, *sorted(ByteLevel.alphabet())]
    filler = [f"word{number}" for number in range(words - len(letters) - 1)]
    added = [*(f"<loc_{number}>" for number in range(places)), "<image>"]
    vocabulary = {token: number for number, token in enumerate([*letters, *filler, "<mask>", *added])}
    tokenizer = BartTokenizer(vocab=vocabulary, merges=[], extra_special_tokens={"image_token": "<image>"})
    tokenizer.add_tokens([AddedToken(word, special=True, normalized=False) for word in added], special_tokens=True)
    return tokenizer
