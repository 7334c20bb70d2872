"""How the processor of Qwen2-VL and its kind writes an image and a question, as data; and the proof that it is so.

An image is written as many times one token as it has image tokens, between two marks.
"""

from __future__ import annotations

import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

from xattn_export.families.base import SourceTokenizer
from xattn_export.families.checkpoint_folder.chat_prompt import (
    INSTRUCTION,
    QUESTIONS,
    question_template_of,
    stated_template,
)
from xattn_export.families.checkpoint_folder.conversation import between_images
from xattn_export.families.checkpoint_folder.quiet import quiet_transformers
from xattn_runtime.errors import CheckpointError
from xattn_runtime.json_reader import one_line, show
from xattn_runtime.preprocess.prompts.video import MOST_FRAMES
from xattn_runtime.preprocess.text import TextCodec
from xattn_runtime.preprocess.tokenizer import ImageLayout, PromptImages

__all__ = ["tokenizer_with_patches"]

_GRIDS = ((1, 1), (1, 7), (3, 2), (40, 41))
_NO_LIMIT = 1 << 30


def tokenizer_with_patches(folder: Path, tokenizer: SourceTokenizer, merge: int, config: Any) -> SourceTokenizer:
    """The tokenizer in `folder` with what the processor writes around every text, and for its image.

    A caption is requested by the instruction in the place of the question; a caption's prompt is an instruction of
    one's own.

    Args:
        merge: the side of the square of patches that becomes one image token.
        config: the model's, which must know the placeholder by the same number.

    Raises:
        CheckpointError: the folder has no chat template that can be carried over, or the runtime would make other
            tokens of images and questions.
    """
    from transformers import AutoTokenizer, Qwen2VLProcessor

    try:
        with quiet_transformers():
            original: Any = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
            settings, _ = Qwen2VLProcessor.get_processor_dict(folder, local_files_only=True)
    except Exception as error:  # each of its parts raises what it likes
        raise CheckpointError(
            f"{folder}: expected the processor of a Qwen-VL, found: {type(error).__name__}: {one_line(error)[:300]}; "
            "save it into this folder with save_pretrained"
        ) from error
    token = getattr(original, "image_token", "<|image_pad|>")
    jinja, render = stated_template(settings, original), original.apply_chat_template
    template = question_template_of(folder, jinja, render, token)
    start, end = _marks(template)
    template = template.replace(f"{start}{{image}}{end}", "{image}")
    between = between_images(str(jinja), render, f"{start}{token}{end}")
    layout = ImageLayout(
        token,
        None,
        f"{start}{{tokens}}{end}",
        merge=merge,
        most_images=1 if between is None else MOST_FRAMES,
        between=between or "",
    )
    spec = replace(
        tokenizer.spec,
        question_template=template,
        prompt_template=template.replace("{question}", "{prompt}"),
        caption_template=template.replace("{question}", INSTRUCTION),
        image_layout=layout,
    )
    written = replace(tokenizer, spec=spec)
    _check_text(folder, original, written, layout, config)
    return written


def _marks(template: str) -> tuple[str, str]:
    """The special tokens that stand around an image."""
    before, after = template.split("{image}")
    start = before[before.rfind("<|") :] if before.endswith("|>") else ""
    end = after[: after.find("|>") + 2] if after.startswith("<|") else ""
    return start, end


def _check_text(folder: Path, original: Any, tokenizer: SourceTokenizer, layout: ImageLayout, config: Any) -> None:
    """CheckpointError unless the runtime makes of images and questions the very tokens that Transformers makes."""
    words, placeholder = config.text_config.vocab_size, config.image_token_id
    with tempfile.TemporaryDirectory() as place:
        path = Path(place) / tokenizer.spec.file
        path.write_text(tokenizer.json, encoding="utf-8")
        codec = TextCodec(path, replace(tokenizer.spec, unknown_token_id=None, max_tokens=_NO_LIMIT))
    several = _GRIDS[: layout.most_images]
    for number, grids in enumerate((*((grid,) for grid in _GRIDS), several)):
        for question in (QUESTIONS[number % len(QUESTIONS)], INSTRUCTION):
            ids = codec.encode_question(question, special_tokens=False, images=PromptImages(grids)).ids
            images, count = layout.between.join(map(layout.text, grids)), sum(map(layout.count, grids))
            text = tokenizer.spec.question_template.replace("{image}", images).replace("{question}", question)
            if list(ids) != original(text).input_ids:
                raise CheckpointError(
                    f"{folder}: expected a tokenizer that reads a prompt as its tokens are written, found one that "
                    f"reads {show(question)} beside an image otherwise; it cannot be carried over"
                )
            if max(ids) >= words or ids.count(placeholder) != count:
                raise CheckpointError(
                    f"{folder}: expected tokens below {words} with {placeholder} for an image token, as config.json "
                    f"says, found tokens up to {max(ids)}, and {placeholder} {ids.count(placeholder)} times for "
                    f"{count}; config.json and the tokenizer are not of one model"
                )
