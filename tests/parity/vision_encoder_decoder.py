"""ViT-GPT2 and TrOCR for `check_families.py`: random weights, called as Transformers' documentation has it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from tokenizers import pre_tokenizers
from torch import Tensor
from transformers import (
    GPT2Config,
    GPT2Tokenizer,
    PretrainedConfig,
    RobertaTokenizer,
    TrOCRConfig,
    VisionEncoderDecoderConfig,
    VisionEncoderDecoderModel,
    ViTConfig,
    ViTImageProcessorPil,
)

from tests.parity.parity import Reference, randomize

__all__ = ["captioner", "save_trocr", "save_vit_gpt2"]

_LONGEST = 20
_WORD_SIZE = 0.1


def save_vit_gpt2(folder: Path, **sizes: Any) -> Path:
    """The architecture of `nlpconnect/vit-gpt2-image-captioning` in `folder`.

    sizes: `text` and `vision`, what their configurations take by name; else as large as that.
    """
    decoder = GPT2Config(add_cross_attention=True, is_decoder=True, **sizes.get("text", {}))
    end = decoder.eos_token_id
    tokenizer = GPT2Tokenizer(_numbered((), decoder.vocab_size - 1, ("<|endoftext|>",)), [])
    return _save(folder, ViTConfig(**sizes.get("vision", {})), decoder, tokenizer, start=end, end=end, pad=end)


def save_trocr(folder: Path, image_size: int = 384) -> Path:
    """The architecture of `microsoft/trocr-base-printed` in `folder`."""
    decoder = TrOCRConfig(d_model=1024, decoder_layers=12, cross_attention_hidden_size=768)
    special = ("<s>", "<pad>", "</s>", "<unk>")
    tokenizer = RobertaTokenizer(_numbered(special, decoder.vocab_size - 1, ("<mask>",)), [])
    encoder = ViTConfig(image_size=image_size, qkv_bias=False)
    return _save(folder, encoder, decoder, tokenizer, start=2, end=2, pad=1)


def captioner(folder: Path) -> Reference:
    """The pair, for captions or for the text that it reads."""
    model = VisionEncoderDecoderModel.from_pretrained(folder, local_files_only=True).eval()
    processor = ViTImageProcessorPil.from_pretrained(folder, local_files_only=True)
    settings = model.generation_config

    def pixels(pictures: Sequence[Any]) -> Tensor:
        found: Tensor = processor(images=list(pictures), return_tensors="pt").pixel_values
        return found

    def logits(pixel_values: Tensor, ids: Tensor, question_ids: Tensor | None) -> Tensor:
        found: Tensor = model(pixel_values=pixel_values, decoder_input_ids=ids).logits
        return found

    def generate(pixel_values: Tensor, question_ids: Tensor | None, **changes: Any) -> Tensor:
        found: Tensor = model.generate(pixel_values, **changes)
        return found

    return Reference(
        pixels,
        logits,
        generate,
        vocabulary=model.config.decoder.vocab_size,
        start=(settings.decoder_start_token_id,),
        ends=(settings.eos_token_id,),
    )


def _save(
    folder: Path,
    encoder: PretrainedConfig,
    decoder: PretrainedConfig,
    tokenizer: Any,
    *,
    start: int,
    end: int,
    pad: int,
) -> Path:
    torch.manual_seed(0)
    model = VisionEncoderDecoderModel(VisionEncoderDecoderConfig.from_encoder_decoder_configs(encoder, decoder))
    randomize(model)
    with torch.no_grad():
        # Words are told by the same weights: large ones would make every word call for itself again.
        for name, tensor in model.decoder.named_parameters():
            if name.endswith(("wte.weight", "layernorm_embedding.weight")):
                tensor.mul_(_WORD_SIZE)
    settings = model.generation_config
    settings.decoder_start_token_id, settings.eos_token_id, settings.pad_token_id = start, end, pad
    settings.bos_token_id, settings.max_length = start, _LONGEST
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    side_px = encoder.image_size
    ViTImageProcessorPil(size={"height": side_px, "width": side_px}).save_pretrained(folder)
    return folder


def _numbered(first: Sequence[str], count: int, last: Sequence[str]) -> dict[str, int]:
    """A byte-level vocabulary of `count` words before the `last`."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    words = (f"word{number}" for number in range(count - len(first) - len(alphabet)))
    return {word: number for number, word in enumerate([*first, *alphabet, *words, *last])}
