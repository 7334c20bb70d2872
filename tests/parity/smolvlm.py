"""SmolVLM and Idefics3 for `check_families.py`: models of any size with random weights, and their own processors.

`SmolVLMProcessor` itself wants torchvision and num2words, for videos; its part for pictures and text needs neither:
`processor_of` makes it without its part for videos.
"""

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
    AutoProcessor,
    AutoTokenizer,
    Idefics3Config,
    Idefics3ForConditionalGeneration,
    Idefics3Processor,
    PreTrainedTokenizerFast,
    SmolVLMConfig,
    SmolVLMForConditionalGeneration,
)
from transformers.models.idefics3.image_processing_pil_idefics3 import Idefics3ImageProcessorPil
from transformers.models.smolvlm.image_processing_pil_smolvlm import SmolVLMImageProcessorPil
from transformers.models.smolvlm.processing_smolvlm import SmolVLMProcessor
from transformers.processing_utils import ProcessorMixin

from tests.parity.parity import Comparison, compare_ids, ids_of, randomize
from xattn_runtime.bundle.folder import open_bundle
from xattn_runtime.execution.session import open_session
from xattn_runtime.execution.settings import session_settings
from xattn_runtime.generate.decoder import DecoderStep
from xattn_runtime.preprocess.pipeline import Pipeline

__all__ = [
    "BASE",
    "CHAT_TEMPLATE",
    "INSTRUCTION",
    "compare_generated",
    "inputs_of",
    "logits_error",
    "model_of",
    "pixel_error",
    "processor_of",
    "save_idefics3",
]

INSTRUCTION = "Can you describe this image?"
"""What a captioner asks, as SmolVLM's documentation does."""

CHAT_TEMPLATE = (
    "<|im_start|>{% for message in messages %}{{message['role'] | capitalize}}"
    "{% if message['content'][0]['type'] == 'image' %}{{':'}}{% else %}{{': '}}{% endif %}"
    "{% for line in message['content'] %}{% if line['type'] == 'text' %}{{line['text']}}"
    "{% elif line['type'] == 'image' %}{{ '<image>' }}{% endif %}{% endfor %}<end_of_utterance>\n"
    "{% endfor %}{% if add_generation_prompt %}{{ 'Assistant:' }}{% endif %}"
)
"""That of SmolVLM."""

BASE: dict[str, Any] = {
    "vision": {
        "hidden_size": 768,
        "intermediate_size": 3072,
        "num_hidden_layers": 12,
        "num_attention_heads": 12,
        "image_size": 512,
        "patch_size": 16,
    },
    "text": {
        "hidden_size": 576,
        "intermediate_size": 1536,
        "num_hidden_layers": 30,
        "num_attention_heads": 9,
        "num_key_value_heads": 3,
        "vocab_size": 49280,
        "max_position_embeddings": 8192,
        "rope_theta": 100000.0,
    },
}
"""SmolVLM-256M."""


class PictureProcessor(SmolVLMProcessor):
    """`SmolVLMProcessor` without videos."""

    def __init__(self, image_processor: Any, tokenizer: Any, image_seq_len: int, chat_template: str) -> None:
        self.image_token, self.fake_image_token = "<image>", "<fake_token_around_image>"
        self.global_image_token = "<global-img>"
        self.image_token_id = tokenizer.convert_tokens_to_ids(self.image_token)
        self.image_seq_len = image_seq_len
        ProcessorMixin.__init__(self, image_processor, tokenizer, chat_template=chat_template)

    def apply_chat_template(self, *arguments: Any, **options: Any) -> Any:
        """As without videos."""
        return ProcessorMixin.apply_chat_template(self, *arguments, **options)


def save_idefics3(
    folder: Path,
    *,
    smolvlm: bool = True,
    scale_factor: int = 4,
    longest_px: int = 2048,
    tile_px: int = 512,
    tied: bool = False,
    splits: bool = True,
    video: dict[str, Any] | None = None,
    **sizes: Any,
) -> Path:
    """A SmolVLM or Idefics3 with random weights in `folder`.

    Args:
        smolvlm: its class and processor, else those of Idefics3.
        longest_px, tile_px: what pictures are brought to, and cut into unless `splits` is false.
        video: settings of its video processor, which SmolVLM2 has.
        tied: whether the head is the table of words.
        sizes: `text` and `vision`, what their configurations take by name; else as large as SmolVLM-256M.
    """
    vision, text = sizes.get("vision", BASE["vision"]), sizes.get("text", BASE["text"])
    tokenizer = _tokenizer(text["vocab_size"])
    ends = {"bos_token_id": 1, "eos_token_id": tokenizer.token_to_id("<end_of_utterance>"), "pad_token_id": 2}
    config_class, model_class = (
        (SmolVLMConfig, SmolVLMForConditionalGeneration)
        if smolvlm
        else (Idefics3Config, Idefics3ForConditionalGeneration)
    )
    config = config_class(
        vision_config=vision,
        text_config={"model_type": "llama", **ends, **text},
        image_token_id=tokenizer.token_to_id("<image>"),
        scale_factor=scale_factor,
        tie_word_embeddings=tied,
        **ends,
    )
    torch.manual_seed(0)
    model = model_class(config).eval()
    randomize(model)
    model.save_pretrained(folder)
    pictures_class = SmolVLMImageProcessorPil if smolvlm else Idefics3ImageProcessorPil
    pictures = pictures_class(
        size={"longest_edge": longest_px}, max_image_size={"longest_edge": tile_px}, do_image_splitting=splits
    )
    words = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<|im_start|>", eos_token="<end_of_utterance>", pad_token="<|im_end|>"
    )
    tokens = (tile_px // vision["patch_size"] // scale_factor) ** 2
    processor_class = PictureProcessor if smolvlm else Idefics3Processor
    processor_class(pictures, words, image_seq_len=tokens, chat_template=CHAT_TEMPLATE).save_pretrained(folder)
    if smolvlm:
        path = folder / "processor_config.json"
        settings = json.loads(path.read_text()) | {"processor_class": "SmolVLMProcessor"}
        path.write_text(json.dumps(settings if video is None else settings | {"video_processor": video}))
    return folder


def processor_of(folder: Path) -> Any:
    """The processor in a folder, for pictures and text."""
    settings, _ = Idefics3Processor.get_processor_dict(folder, local_files_only=True)
    if settings["processor_class"] == "Idefics3Processor":
        return AutoProcessor.from_pretrained(folder, local_files_only=True, backend="pil")
    return PictureProcessor(
        SmolVLMImageProcessorPil.from_pretrained(folder, local_files_only=True),
        AutoTokenizer.from_pretrained(folder, local_files_only=True),
        settings["image_seq_len"],
        settings["chat_template"],
    )


def model_of(folder: Path) -> Any:
    """The model in a folder."""
    try:
        return SmolVLMForConditionalGeneration.from_pretrained(folder, local_files_only=True).eval()
    except (OSError, ValueError):
        return Idefics3ForConditionalGeneration.from_pretrained(folder, local_files_only=True).eval()


def inputs_of(processor: Any, picture: Image.Image, question: str) -> Any:
    """What the processor makes of a picture and a question, as the documentation has it."""
    content = [{"type": "image", "image": picture}, {"type": "text", "text": question}]
    messages = [{"role": "user", "content": content}]
    return processor.apply_chat_template(
        messages, add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
    )


def pixel_error(bundle: Path, processor: Any, pictures: Sequence[Image.Image]) -> float:
    """Largest difference of a pixel value in any tile from the processor's, as a share of the values' range."""
    pipeline = Pipeline(open_bundle(bundle).manifest.image_steps)
    worst = 0.0
    for picture in pictures:
        expected = processor.image_processor(picture, return_tensors="np")["pixel_values"][0]
        found = pipeline.tiles(picture).pixels
        worst = max(worst, float(np.abs(found - expected).max() / 2))
    return worst


def logits_error(
    bundle: Path, folder: Path, pictures: Sequence[Image.Image], question: str, *, steps: int = 16, prefill: int = 0
) -> float:
    """Largest difference of a logit as a share of the largest, teacher-forced along random tokens after the prompt.

    Args:
        pictures: a batch, all cut in the same way.
        prefill: how many of the tokens run together with the prompt; the others follow one at a time, with the cache.
    """
    processor, model = processor_of(folder), model_of(folder)
    inputs = [inputs_of(processor, picture, question) for picture in pictures]
    prompt, pixels = (torch.cat([one[name] for one in inputs]) for name in ("input_ids", "pixel_values"))
    shape, limit = (len(pictures), steps), model.config.image_token_id
    tokens = torch.randint(0, limit, shape, generator=torch.Generator().manual_seed(9))
    ids = torch.cat((prompt, tokens), 1)
    first = prompt.shape[1] + prefill
    with torch.inference_mode():
        expected = model(ids, pixel_values=pixels, logits_to_keep=steps - prefill + 1).logits.numpy()
    opened, settings = open_bundle(bundle), session_settings("cpu", None)
    encoder = open_session(opened, "image_encoder", settings)
    image_tokens = encoder.run(["image_tokens"], {"pixel_values": pixels.flatten(0, 1).numpy()})[0]
    image = {"image_tokens": image_tokens.reshape(len(pictures), -1, image_tokens.shape[2])}
    decoder = DecoderStep(open_session(opened, "decoder", settings))
    past, rows = decoder.first_past(image), []
    for part in (ids[:, :first], *(ids[:, place : place + 1] for place in range(first, ids.shape[1]))):
        logits, past = decoder.logits(np.ascontiguousarray(part.numpy()), past, decoder.cross(image))
        rows.append(logits)
    return float(np.abs(np.stack(rows, 1) - expected).max() / np.abs(expected).max())


def compare_generated(task: Any, processor: Any, model: Any, file: Path, question: str, *, beams: int) -> Comparison:
    """As `parity.compare_generated`, of what `processor_of` and `model_of` give."""
    with Image.open(file) as picture:
        inputs = inputs_of(processor, picture, question)

    def generate(**settings: Any) -> Any:
        return model.generate(**inputs, num_beams=beams, **settings)

    return compare_ids(
        generate,
        ids_of(task, file, beams, question),
        prompt_length=inputs.input_ids.shape[1],
        ends=(model.generation_config.eos_token_id,),
    )


def _tokenizer(size: int) -> Tokenizer:
    """Byte-level BPE with the special tokens of SmolVLM, `size` tokens in all, or as many as there are."""
    first = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
    cells = (f"<row_{row}_col_{column}>" for row in range(1, 7) for column in range(1, 7))
    last = ("<fake_token_around_image>", *cells, "<global-img>", "<image>", "<end_of_utterance>")
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    text = "User: what color is the circle?\n\nAssistant: a red square on the triangle.\n\n"
    trainer = trainers.BpeTrainer(
        vocab_size=min(size - len(last), 320),
        special_tokens=list(first),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([text, text], trainer)
    unused = (f"<unused_{number}>" for number in range(size - tokenizer.get_vocab_size() - len(last)))
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in (*unused, *last)])
    return tokenizer
