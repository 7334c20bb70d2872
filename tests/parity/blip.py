"""BLIP for `check_families.py` and the tests: models of any size with random weights, called as Transformers has it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import (
    AutoProcessor,
    BertTokenizer,
    BlipConfig,
    BlipForConditionalGeneration,
    BlipForImageTextRetrieval,
    BlipForQuestionAnswering,
    BlipProcessor,
)
from transformers.models.blip.image_processing_pil_blip import BlipImageProcessorPil

from tests.parity.parity import Reference, randomize

__all__ = ["answerer", "captioner", "embedder", "matcher", "save_blip"]


def save_blip(folder: Path, model_class: Any, words: Sequence[str], image_size: int, **sizes: Any) -> Path:
    """A BLIP with random weights in `folder`.

    Args:
        words: the vocabulary, whose last word begins every text and whose `[SEP]` ends it.
        sizes: `text` and `vision`, what their configurations take by name; else as large as BLIP-base.
    """
    ends = {"bos_token_id": len(words) - 1, "sep_token_id": list(words).index("[SEP]"), "pad_token_id": 0}
    config = BlipConfig(
        text_config={"vocab_size": len(words), **ends, **sizes.get("text", {})},
        vision_config={"image_size": image_size, **sizes.get("vision", {})},
    )
    torch.manual_seed(0)
    model = model_class(config)
    randomize(model)
    model.save_pretrained(folder)
    tokenizer = BertTokenizer({word: number for number, word in enumerate(words)})
    BlipProcessor(BlipImageProcessorPil(size={"height": image_size, "width": image_size}), tokenizer).save_pretrained(
        folder
    )
    return folder


def captioner(folder: Path) -> Reference:
    """BLIP for captioning, as its documentation calls it."""
    model, processor, ends = _load(folder, BlipForConditionalGeneration)

    def logits(pixel_values: Tensor, ids: Tensor, question_ids: Tensor | None) -> Tensor:
        found: Tensor = model(pixel_values, ids).logits
        return found

    def generate(pixel_values: Tensor, question_ids: Tensor | None, **settings: Any) -> Tensor:
        found: Tensor = model.generate(pixel_values, **settings)
        return found

    return Reference(_pixels(processor), logits, generate, **ends)


def answerer(folder: Path) -> Reference:
    """BLIP for visual question answering, as its documentation calls it."""
    model, processor, ends = _load(folder, BlipForQuestionAnswering)

    def logits(pixel_values: Tensor, ids: Tensor, question_ids: Tensor | None) -> Tensor:
        captured: list[Tensor] = []
        hook = model.text_decoder.register_forward_hook(lambda *call: captured.append(call[2].logits))
        model(question_ids, pixel_values, decoder_input_ids=ids, attention_mask=_whole(question_ids))
        hook.remove()
        return captured[0]

    def generate(pixel_values: Tensor, question_ids: Tensor | None, **settings: Any) -> Tensor:
        found: Tensor = model.generate(question_ids, pixel_values, _whole(question_ids), **settings)
        return found

    def question_ids(question: str) -> Tensor:
        ids: Tensor = processor(text=question, return_tensors="pt").input_ids
        return ids

    return Reference(_pixels(processor), logits, generate, **ends, question_ids=question_ids)


def embedder(folder: Path) -> Callable[[Path, str], tuple[Tensor, Tensor]]:
    """A picture file and a text to their embeddings, by BLIP for retrieval: what `use_itm_head=False` compares."""
    model, processor, _ = _load(folder, BlipForImageTextRetrieval)

    def embed(file: Path, text: str) -> tuple[Tensor, Tensor]:
        from PIL import Image

        with Image.open(file) as picture:
            inputs = processor(images=picture, text=text, return_tensors="pt")
        output = model(**inputs, use_itm_head=False)
        image = F.normalize(model.vision_proj(output.last_hidden_state[:, 0]), dim=-1)
        words = F.normalize(model.text_proj(output.question_embeds[:, 0]), dim=-1)
        torch.testing.assert_close(image @ words.T, output.itm_score)
        return image, words

    return embed


def matcher(folder: Path) -> Callable[[Path, str], float]:
    """A picture file and a text to the logit that they belong together, by the head for it (`use_itm_head=True`)."""
    model, processor, _ = _load(folder, BlipForImageTextRetrieval)

    def match(file: Path, text: str) -> float:
        from PIL import Image

        with Image.open(file) as picture:
            inputs = processor(images=picture, text=text, return_tensors="pt")
        no, yes = model(**inputs, use_itm_head=True).itm_score[0].tolist()
        return float(yes - no)

    return match


def _load(folder: Path, model_class: Any) -> tuple[Any, Any, dict[str, Any]]:
    model = model_class.from_pretrained(folder, local_files_only=True).eval()
    processor = AutoProcessor.from_pretrained(folder, local_files_only=True, backend="pil")
    text = model.config.text_config
    ends = {"vocabulary": text.vocab_size, "start": (text.bos_token_id,), "ends": (text.sep_token_id,)}
    return model, processor, ends


def _pixels(processor: Any) -> Callable[[Sequence[Any]], Tensor]:
    def pixels(pictures: Sequence[Any]) -> Tensor:
        found: Tensor = processor(images=list(pictures), return_tensors="pt").pixel_values
        return found

    return pixels


def _whole(ids: Tensor | None) -> Tensor:
    """The mask of questions without padding."""
    assert ids is not None
    return torch.ones_like(ids)
