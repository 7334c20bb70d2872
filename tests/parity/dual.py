"""CLIP and SigLIP for `check_families.py`: models of their base sizes with random weights, called as documented."""

from __future__ import annotations

import string
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from transformers import (
    AutoModel,
    AutoProcessor,
    CLIPConfig,
    CLIPModel,
    CLIPProcessor,
    CLIPTokenizer,
    GemmaTokenizer,
    SiglipConfig,
    SiglipModel,
    SiglipProcessor,
)
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil

from tests.parity.parity import randomize

__all__ = ["embedder", "save_clip", "save_siglip"]

_LETTERS = string.ascii_lowercase + string.digits + string.punctuation


def save_clip(folder: Path, image_size: int = 224, **sizes: Any) -> Path:
    """CLIP with random weights in `folder`, `text` and `vision` as their configurations name sizes, else ViT-B/32."""
    vision = {"image_size": image_size, **sizes.get("vision", {})}
    config = CLIPConfig(text_config=sizes.get("text", {}), vision_config=vision)
    first, end = "<|startoftext|>", "<|endoftext|>"
    filler = config.text_config.vocab_size - 2 * len(_LETTERS) - 2
    words = [*_LETTERS, *(f"{letter}</w>" for letter in _LETTERS), *(f"[unused{i}]" for i in range(filler)), first, end]
    tokenizer = CLIPTokenizer({word: number for number, word in enumerate(words)}, merges=[])
    side = {"height": image_size, "width": image_size}
    pictures = CLIPImageProcessorPil(size={"shortest_edge": image_size}, crop_size=side)
    return _save(folder, CLIPModel, config, CLIPProcessor(pictures, tokenizer))


def save_siglip(folder: Path, image_size: int = 224, **sizes: Any) -> Path:
    """SigLIP as `save_clip`, else base with patches of 16; the tokenizer is of the kind that its second version has."""
    words = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>", "▁", *_LETTERS]
    tokenizer = GemmaTokenizer(
        {word: number for number, word in enumerate(words)},
        merges=[],
        add_bos_token=False,
        add_eos_token=True,
        padding_side="right",
        model_input_names=["input_ids"],
    )
    vision = {"image_size": image_size, **sizes.get("vision", {})}
    config = SiglipConfig(text_config=sizes.get("text", {}), vision_config=vision)
    pictures = SiglipImageProcessorPil(size={"height": image_size, "width": image_size})
    return _save(folder, SiglipModel, config, SiglipProcessor(pictures, tokenizer))


def embedder(folder: Path) -> Callable[[Path, str], tuple[Tensor, Tensor]]:
    """A picture file and a text to their embeddings, as the model's own forward compares them."""
    model = AutoModel.from_pretrained(folder, local_files_only=True).eval()
    processor = AutoProcessor.from_pretrained(folder, local_files_only=True, backend="pil")
    padding = {"padding": "max_length", "max_length": 64} if isinstance(model, SiglipModel) else {}

    def embed(file: Path, text: str) -> tuple[Tensor, Tensor]:
        with Image.open(file) as picture:
            inputs = processor(images=picture.convert("RGB"), text=text, return_tensors="pt", **padding)
        output = model(**inputs)
        return output.image_embeds, output.text_embeds

    return embed


def _save(folder: Path, model_class: Any, config: Any, processor: Any) -> Path:
    torch.manual_seed(0)
    model = model_class(config)
    randomize(model)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder
