"""Tiny LLaVA, PaliGemma and Gemma 3 as published folders are, and what Transformers itself makes of a question."""

from __future__ import annotations

import string
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from PIL import Image
from torch import Tensor
from transformers import (
    AutoProcessor,
    CLIPImageProcessorPil,
    Gemma3Config,
    Gemma3ForConditionalGeneration,
    Gemma3ImageProcessorPil,
    Gemma3Processor,
    GemmaTokenizer,
    LlamaTokenizer,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PaliGemmaConfig,
    PaliGemmaForConditionalGeneration,
    PaliGemmaProcessor,
    SiglipImageProcessorPil,
)

from tests.export.families.conftest import randomize
from xattn_runtime.bundle.folder import open_bundle
from xattn_runtime.execution.session import open_session
from xattn_runtime.execution.settings import session_settings
from xattn_runtime.generate.decoder import DecoderStep

__all__ = ["SAVED", "forced_error", "inputs_of", "model_of", "processor_of"]

SIDE_PX = 32
VISION = {
    "hidden_size": 24,
    "intermediate_size": 40,
    "num_hidden_layers": 3,
    "num_attention_heads": 3,
    "image_size": SIDE_PX,
    "patch_size": 8,
}
SIGLIP = {"model_type": "siglip_vision_model", "vision_use_head": False}
TEXT = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 256,
}
_BYTES = [f"<0x{number:02X}>" for number in range(256)]
_LETTERS = ["▁", "\n", *string.ascii_letters, *string.digits, *string.punctuation.replace("<", "").replace(">", "")]
_MERGES = [("▁", "t"), ("t", "h"), ("th", "e"), ("▁", "c"), ("i", "s"), ("o", "r"), ("▁", "a")]
_WORDS = [*_BYTES, *_LETTERS, *dict.fromkeys("".join(pair) for pair in _MERGES)]

LLAVA_TEMPLATE = (
    "{% for message in messages %}{{ message['role'].upper() + ': ' }}"
    "{% for part in message['content'] if part['type'] == 'image' %}{{ '<image>\n' }}{% endfor %}"
    "{% for part in message['content'] if part['type'] == 'text' %}{{ part['text'] + ' ' }}{% endfor %}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}"
)
GEMMA_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}{{ '<start_of_turn>' + message['role'] + '\n' }}"
    "{% for part in message['content'] %}{% if part['type'] == 'image' %}{{ '<start_of_image>' }}"
    "{% else %}{{ part['text'] | trim }}{% endif %}{% endfor %}{{ '<end_of_turn>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}"
)


def _vocabulary(special: Sequence[str]) -> dict[str, int]:
    return {word: number for number, word in enumerate((*special, *_WORDS))}


def _save(folder: Path, model: Any, processor: Any) -> Path:
    randomize(model)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


def save_llava(folder: Path, *, siglip: bool = False, legacy: bool = False) -> Path:
    """LLaVA-1.5 with CLIP and Llama, or its interleaved kind with SigLIP and Qwen2."""
    tokenizer = LlamaTokenizer(
        _vocabulary(("<unk>", "<s>", "</s>")),
        _MERGES,
        legacy=legacy,
        add_bos_token=True,
        pad_token="<pad>",
        extra_special_tokens={"image_token": "<image>"},
    )
    strategy = "full" if siglip else "default"
    config = LlavaConfig(
        vision_config=VISION | (SIGLIP if siglip else {"model_type": "clip_vision_model"}),
        text_config=TEXT
        | {"model_type": "qwen2" if siglip else "llama", "vocab_size": len(tokenizer) + 3, "eos_token_id": 2},
        image_token_id=tokenizer.convert_tokens_to_ids("<image>"),
        vision_feature_layer=-1 if siglip else -2,
        vision_feature_select_strategy=strategy,
    )
    size = {"height": SIDE_PX, "width": SIDE_PX}
    images = (
        SiglipImageProcessorPil(size=size)
        if siglip
        else CLIPImageProcessorPil(size={"shortest_edge": SIDE_PX}, crop_size=size)
    )
    processor = LlavaProcessor(
        images,
        tokenizer,
        patch_size=8,
        vision_feature_select_strategy=strategy,
        chat_template=LLAVA_TEMPLATE,
        num_additional_image_tokens=0 if siglip else 1,
    )
    return _save(folder, LlavaForConditionalGeneration(config), processor)


def save_paligemma(folder: Path) -> Path:
    """PaliGemma 2: SigLIP and Gemma 2, with a window that prompts reach beyond."""
    tokenizer = GemmaTokenizer(
        _vocabulary(("<pad>", "<eos>", "<bos>", "<unk>", "<mask>")),
        _MERGES,
        add_bos_token=True,
        extra_special_tokens={"image_token": "<image>"},
    )
    images = SiglipImageProcessorPil(size={"height": SIDE_PX, "width": SIDE_PX})
    images.image_seq_length = 16
    processor = PaliGemmaProcessor(images, tokenizer)
    config = PaliGemmaConfig(
        vision_config=VISION | SIGLIP | {"projection_dim": 32},
        text_config=TEXT
        | {"model_type": "gemma2", "vocab_size": len(tokenizer), "sliding_window": 24, "query_pre_attn_scalar": 8},
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
        projection_dim=32,
    )
    return _save(folder, PaliGemmaForConditionalGeneration(config), processor)


def save_gemma3(folder: Path) -> Path:
    """Gemma 3, with images that are wider than a window."""
    marks = {
        "boi_token": "<start_of_image>",
        "eoi_token": "<end_of_image>",
        "image_token": "<image_soft_token>",
    }
    tokenizer = GemmaTokenizer(
        _vocabulary(("<pad>", "<eos>", "<bos>", "<unk>", "<mask>", "<start_of_turn>", "<end_of_turn>")),
        _MERGES,
        add_bos_token=True,
        extra_special_tokens=marks,
        additional_special_tokens=["<start_of_turn>", "<end_of_turn>"],
    )
    images = Gemma3ImageProcessorPil(size={"height": SIDE_PX, "width": SIDE_PX}, image_seq_length=16)
    processor = Gemma3Processor(images, tokenizer, chat_template=GEMMA_TEMPLATE, image_seq_length=16)
    ends = [1, tokenizer.convert_tokens_to_ids("<end_of_turn>")]
    config = Gemma3Config(
        vision_config=VISION | SIGLIP | {"patch_size": 4},
        text_config=TEXT
        | {
            "vocab_size": len(tokenizer),
            "sliding_window": 8,
            "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
            "query_pre_attn_scalar": 8,
        },
        mm_tokens_per_image=16,
        image_token_id=tokenizer.convert_tokens_to_ids("<image_soft_token>"),
        boi_token_id=tokenizer.convert_tokens_to_ids("<start_of_image>"),
        eoi_token_id=tokenizer.convert_tokens_to_ids("<end_of_image>"),
        eos_token_id=ends,
    )
    model = Gemma3ForConditionalGeneration(config)
    model.generation_config.update(do_sample=True, top_k=64, top_p=0.95)
    return _save(folder, model, processor)


SAVED = {
    "llava": save_llava,
    "llava-interleave": lambda folder: save_llava(folder, siglip=True, legacy=True),
    "paligemma2": save_paligemma,
    "gemma3": save_gemma3,
}


def processor_of(folder: Path) -> Any:
    """The processor that Transformers itself makes of a folder."""
    return AutoProcessor.from_pretrained(folder, local_files_only=True, backend="pil")


def model_of(folder: Path) -> Any:
    """The model in a folder."""
    model_type = transformers.AutoConfig.from_pretrained(folder).architectures[0]
    return getattr(transformers, model_type).from_pretrained(folder, attn_implementation="eager").eval()


def inputs_of(processor: Any, picture: Image.Image, question: str) -> Any:
    """What the processor makes of a picture and a question, as the documentation has it."""
    if processor.chat_template is None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # of numpy, about how the processor makes an array
            return processor(images=picture, text=f"<image>answer en {question}", return_tensors="pt")
    content = [{"type": "image", "image": picture}, {"type": "text", "text": question}]
    return processor.apply_chat_template(
        [{"role": "user", "content": content}],
        add_generation_prompt=True,
        tokenize=True,
        return_dict=True,
        return_tensors="pt",
    )


def generation_inputs(inputs: Any) -> dict[str, Any]:
    """Those for `generate()`: a processor of PaliGemma adds what only training takes."""
    return {name: value for name, value in inputs.items() if name not in ("labels", "num_crops")}


def forced_error(
    bundle: Path, folder: Path, pictures: Sequence[Image.Image], question: str, *, steps: int = 16
) -> float:
    """Largest difference of a logit as a share of the largest, teacher-forced along random tokens after the prompt."""
    processor, model = processor_of(folder), model_of(folder)
    inputs = [generation_inputs(inputs_of(processor, picture, question)) for picture in pictures]
    whole = {name: torch.cat([one[name] for one in inputs]) for name in inputs[0] if name != "attention_mask"}
    prompt = whole.pop("input_ids")
    tokens = torch.randint(5, 300, (len(pictures), steps), generator=torch.Generator().manual_seed(9))
    if "token_type_ids" in whole:
        after = torch.full_like(tokens, int(model.config.model_type == "paligemma"))
        whole["token_type_ids"] = torch.cat((whole["token_type_ids"], after), 1)
    ids = torch.cat((prompt, tokens), 1)
    with torch.inference_mode():
        expected = model(ids, logits_to_keep=steps + 1, **whole).logits.numpy()
    found = _bundle_logits(bundle, whole["pixel_values"], prompt, tokens)
    return float(np.abs(found - expected).max() / np.abs(expected).max())


def _bundle_logits(bundle: Path, pixels: Tensor, prompt: Tensor, tokens: Tensor) -> np.ndarray[Any, Any]:
    opened, settings = open_bundle(bundle), session_settings("cpu", None)
    encoder = open_session(opened, "image_encoder", settings)
    image = {"image_tokens": encoder.run(["image_tokens"], {"pixel_values": pixels.numpy()})[0]}
    decoder = DecoderStep(open_session(opened, "decoder", settings))
    past, rows = decoder.first_past(image), []
    for part in (prompt, *tokens.split(1, 1)):
        logits, past = decoder.logits(np.ascontiguousarray(part.numpy()), past, decoder.cross(image))
        rows.append(logits)
    return np.stack(rows, 1)
