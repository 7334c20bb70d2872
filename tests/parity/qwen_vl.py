"""Qwen2-VL and its kind for the tests: models of any size with random weights, and their own processors."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    AutoConfig,
    AutoModelForImageTextToText,
    AutoTokenizer,
    PreTrainedTokenizerFast,
    Qwen2VLProcessor,
)
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil
from transformers.processing_utils import ProcessorMixin

from tests.parity.parity import Comparison, compare_ids, ids_of, randomize
from xattn_runtime.bundle.folder import open_bundle
from xattn_runtime.execution.session import open_session
from xattn_runtime.execution.settings import session_settings
from xattn_runtime.generate.decoder import DecoderStep
from xattn_runtime.preprocess.pipeline import Pipeline
from xattn_runtime.tasks import CaptionTask, VqaTask

__all__ = [
    "CHAT_TEMPLATE",
    "compare_generated",
    "inputs_of",
    "logits_error",
    "model_of",
    "processor_of",
    "save_qwen_vl",
]

CHAT_TEMPLATE = (
    "{% set image_count = namespace(value=0) %}{% set video_count = namespace(value=0) %}"
    "{% for message in messages %}{% if loop.first and message['role'] != 'system' %}<|im_start|>system\n"
    "You are a helpful assistant.<|im_end|>\n{% endif %}<|im_start|>{{ message['role'] }}\n"
    "{% if message['content'] is string %}{{ message['content'] }}<|im_end|>\n{% else %}"
    "{% for content in message['content'] %}"
    "{% if content['type'] == 'image' or 'image' in content or 'image_url' in content %}"
    "{% set image_count.value = image_count.value + 1 %}"
    "{% if add_vision_id %}Picture {{ image_count.value }}: {% endif %}<|vision_start|><|image_pad|><|vision_end|>"
    "{% elif content['type'] == 'video' or 'video' in content %}{% set video_count.value = video_count.value + 1 %}"
    "{% if add_vision_id %}Video {{ video_count.value }}: {% endif %}<|vision_start|><|video_pad|><|vision_end|>"
    "{% elif 'text' in content %}{{ content['text'] }}{% endif %}{% endfor %}<|im_end|>\n{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
"""That of Qwen2-VL."""

_TOWER = {
    "depth": 3,
    "hidden_size": 32,
    "out_hidden_size": 48,
    "num_heads": 2,
    "intermediate_size": 40,
    "patch_size": 4,
    "spatial_merge_size": 2,
    "temporal_patch_size": 2,
}
_TEXT = {
    "hidden_size": 48,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 400,
    "max_position_embeddings": 512,
    "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 1, 3]},
}
SMALL: dict[str, dict[str, dict[str, Any]]] = {
    "qwen2_vl": {
        "vision": {
            "depth": 2,
            "embed_dim": 32,
            "hidden_size": 48,
            "num_heads": 2,
            "mlp_ratio": 2,
            "patch_size": 4,
            "spatial_merge_size": 2,
            "temporal_patch_size": 2,
        },
        "text": _TEXT,
    },
    "qwen3_vl": {
        "vision": _TOWER | {"num_position_embeddings": 25, "deepstack_visual_indexes": [0, 2]},
        "text": _TEXT
        | {
            "head_dim": 16,
            "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [4, 2, 2]},
        },
    },
    "qwen2_5_vl": {"vision": _TOWER | {"window_size": 24, "fullatt_block_indexes": [1]}, "text": _TEXT},
}
"""Model type → what the configurations of a tiny one take by name."""

_SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>", "<|vision_pad|>")
_PADS = ("<|image_pad|>", "<|video_pad|>")


class ImageProcessor(Qwen2VLProcessor):
    """`Qwen2VLProcessor` without its part for videos, which wants torchvision."""

    def __init__(self, image_processor: Any, tokenizer: Any, chat_template: str | None = None) -> None:
        self.image_token, self.video_token = _PADS
        self.image_token_id, self.video_token_id = tokenizer.convert_tokens_to_ids(list(_PADS))
        ProcessorMixin.__init__(self, image_processor, tokenizer, chat_template=chat_template)


def save_qwen_vl(
    folder: Path, model_type: str, *, pixels: tuple[int, int] = (256, 4096), tied: bool = True, **sizes: Any
) -> Path:
    """A Qwen2-VL, or one of its kind, with random weights in `folder`, in the form of the published folders.

    Args:
        model_type: of its configuration.
        pixels: the fewest and the most of an image.
        tied: whether the head is the table of words.
        sizes: `text` and `vision`, what their configurations take by name; else those of `SMALL`.
    """
    vision, text = ({**sizes.get(part, SMALL[model_type][part])} for part in ("vision", "text"))
    tokenizer = _tokenizer(text["vocab_size"])
    ids = {token: tokenizer.token_to_id(token) for token in (*_SPECIAL, *_PADS)}
    ends = {"bos_token_id": ids["<|endoftext|>"], "eos_token_id": ids["<|im_end|>"]}
    config = AutoConfig.for_model(
        model_type,
        vision_config=vision,
        text_config={**ends, **text},
        image_token_id=ids["<|image_pad|>"],
        video_token_id=ids["<|video_pad|>"],
        vision_start_token_id=ids["<|vision_start|>"],
        vision_end_token_id=ids["<|vision_end|>"],
        tie_word_embeddings=tied,
    )
    torch.manual_seed(0)
    model = AutoModelForImageTextToText.from_config(config).eval()
    randomize(model)
    model.generation_config.pad_token_id = ids["<|endoftext|>"]
    model.generation_config.eos_token_id = [ids["<|im_end|>"], ids["<|endoftext|>"]]
    # Published ones draw tokens by default.
    model.generation_config.update(do_sample=True, temperature=0.01, top_k=1, top_p=0.001)
    if model_type == "qwen2_5_vl":
        model.generation_config.update(repetition_penalty=1.05)
    model.save_pretrained(folder)
    _as_published(folder / "config.json")
    words = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token="<|im_end|>", pad_token="<|endoftext|>", additional_special_tokens=[]
    )
    words.save_pretrained(folder)
    (folder / "chat_template.json").write_text(json.dumps({"chat_template": CHAT_TEMPLATE}))
    settings = Qwen2VLImageProcessorPil(
        size={"shortest_edge": pixels[0], "longest_edge": pixels[1]},
        patch_size=vision["patch_size"],
        merge_size=vision["spatial_merge_size"],
    ).to_dict()
    # As the published files state it.
    settings |= {"image_processor_type": "Qwen2VLImageProcessor", "processor_class": "Qwen2VLProcessor"}
    del settings["size"]
    settings |= {"min_pixels": pixels[0], "max_pixels": pixels[1]}
    (folder / "preprocessor_config.json").write_text(json.dumps(settings))
    return folder


def processor_of(folder: Path) -> ImageProcessor:
    """The processor in a folder, for images and text."""
    template = json.loads((folder / "chat_template.json").read_text())["chat_template"]
    images = Qwen2VLImageProcessorPil.from_pretrained(folder, local_files_only=True)
    return ImageProcessor(images, AutoTokenizer.from_pretrained(folder, local_files_only=True), template)


def model_of(folder: Path) -> Any:
    """The model in a folder, asked for the best token."""
    model = AutoModelForImageTextToText.from_pretrained(folder, local_files_only=True).eval()
    model.generation_config.update(do_sample=False, temperature=None, top_k=None, top_p=None)
    return model


def inputs_of(processor: Any, images: Image.Image | Sequence[Image.Image], question: str) -> Any:
    """What the processor makes of an image, or several, and a question, as the documentation has it."""
    listed = [images] if isinstance(images, Image.Image) else images
    content = [*({"type": "image", "image": image} for image in listed), {"type": "text", "text": question}]
    return processor.apply_chat_template(
        [{"role": "user", "content": content}],
        add_generation_prompt=True,
        tokenize=True,
        return_dict=True,
        return_tensors="pt",
    )


def logits_error(
    bundle: Path, folder: Path, image: Image.Image, question: str, *, steps: int = 16, prefill: int = 0
) -> float:
    """Largest difference of a logit as a share of the largest, teacher-forced along random tokens after the prompt.

    prefill: how many of the tokens run together with the prompt; the others follow one at a time, with the cache.
    """
    processor, model = processor_of(folder), model_of(folder)
    inputs = inputs_of(processor, image, question)
    prompt = inputs.input_ids
    tokens = torch.randint(0, prompt.min() + 60, (1, steps), generator=torch.Generator().manual_seed(9))
    ids, first = torch.cat((prompt, tokens), 1), prompt.shape[1] + prefill
    kinds = torch.cat((inputs.mm_token_type_ids, torch.zeros_like(tokens, dtype=torch.int32)), 1)
    images = {"pixel_values": inputs.pixel_values, "image_grid_thw": inputs.image_grid_thw}
    with torch.inference_mode():
        expected = model(ids, mm_token_type_ids=kinds, logits_to_keep=steps - prefill + 1, **images).logits[0].numpy()
    opened, settings = open_bundle(bundle), session_settings("cpu", None)
    patches = Pipeline(opened.manifest.image_steps).patches(image)
    encoder = open_session(opened, "image_encoder", settings)
    grid = np.array([patches.rows, patches.columns])
    image_tokens = encoder.run(["image_tokens"], {"patches": patches.values[None], "grid": grid})[0]
    merge = model.config.vision_config.spatial_merge_size
    context = {"image_tokens": image_tokens, "image_grids": grid[None, None] // merge}
    decoder = DecoderStep(open_session(opened, "decoder", settings))
    past, rows = decoder.first_past(context), []
    for part in (ids[:, :first], *(ids[:, place : place + 1] for place in range(first, ids.shape[1]))):
        logits, past = decoder.logits(np.ascontiguousarray(part.numpy()), past, decoder.cross(context))
        rows.append(logits)
    return float(np.abs(np.concatenate(rows) - expected).max() / np.abs(expected).max())


def compare_generated(
    task: CaptionTask | VqaTask, processor: Any, model: Any, file: Path, question: str, *, beams: int
) -> Comparison:
    """As `parity.compare_generated`, of what `processor_of` and `model_of` give."""
    with Image.open(file) as image:
        inputs = inputs_of(processor, image, question)

    def generate(**settings: Any) -> Any:
        return model.generate(**inputs, num_beams=beams, **settings)

    return compare_ids(
        generate,
        ids_of(task, file, beams, question),
        prompt_length=inputs.input_ids.shape[1],
        ends=model.generation_config.eos_token_id,
    )


def _as_published(path: Path) -> None:
    """Write a configuration as the published folders have it: what Transformers 4 said of positions, all in one level.

    Of Qwen3-VL the text's settings have an object of their own.
    """
    config = json.loads(path.read_text())
    text, vision = config.pop("text_config"), config["vision_config"]
    positions = text.pop("rope_parameters")
    is_flat = config["model_type"] != "qwen3_vl"
    scaling = {"type": "mrope"} if is_flat else {"rope_type": "default", "mrope_interleaved": True}
    text |= {
        "rope_theta": positions["rope_theta"],
        "rope_scaling": scaling | {"mrope_section": positions["mrope_section"]},
    }
    text.pop("layer_types", None)
    vision["model_type"] = config["model_type"]
    del vision["rope_parameters"]
    text.pop("pad_token_id")
    config = text | config if is_flat else config | {"text_config": text}
    path.write_text(json.dumps(config))


def _tokenizer(size: int) -> Tokenizer:
    """Byte-level BPE with the special tokens of Qwen2-VL, `size` tokens in all."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    text = "user\nwhat color is the circle? assistant\na red square on the triangle. You are a helpful assistant."
    trainer = trainers.BpeTrainer(
        vocab_size=min(size - 8, 320), initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    tokenizer.train_from_iterator([text, text], trainer)
    unused = (f"<|unused_{number}|>" for number in range(size - tokenizer.get_vocab_size() - 8))
    special = [AddedToken(token, special=True, normalized=False) for token in (*unused, *_SPECIAL, *_PADS)]
    tokenizer.add_special_tokens(special)
    return tokenizer
