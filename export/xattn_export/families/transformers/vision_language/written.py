"""How a processor of Transformers writes an image of one size and a question, as data; and the proof that it is so."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from xattn_export.families.base import SourceTokenizer
from xattn_export.families.checkpoint_folder.chat_prompt import INSTRUCTION, QUESTIONS, question_template_of
from xattn_export.families.checkpoint_folder.image_text import special_around
from xattn_export.families.checkpoint_folder.quiet import quiet_transformers
from xattn_export.families.transformers.vision_language.architecture import Opened, Written
from xattn_runtime.errors import CheckpointError
from xattn_runtime.json_reader import one_line, show
from xattn_runtime.preprocess.text import TextCodec
from xattn_runtime.preprocess.tokenizer import ImageLayout

__all__ = ["written_as_chat", "written_as_prefix"]

_SIDE_PX = 8
_BLANK = "▁"
_NO_LIMIT = 1 << 30


def written_as_chat(opened: Opened, tokenizer: SourceTokenizer) -> Written:
    """The tokenizer with what the chat template and the processor write around every text, and for its image.

    A caption is requested by the instruction in the place of the question; a caption's prompt is an instruction of
    one's own.

    Raises:
        CheckpointError: no processor, no chat template that can be carried over, another number of image tokens than
            the model has, or tokens that the runtime would make otherwise.
    """
    folder, processor = opened.folder, _processor(opened.folder)
    render = processor.tokenizer.apply_chat_template
    template = question_template_of(folder, processor.chat_template, render, processor.image_token)

    def ids(image: Image.Image, question: str) -> list[int]:
        content = [{"type": "image", "image": image}, {"type": "text", "text": question}]
        messages = [{"role": "user", "content": content}]
        found = processor.apply_chat_template(messages, add_generation_prompt=True, tokenize=True, return_dict=True)
        return list(found["input_ids"][0])

    begins = [template]
    if (begin := processor.tokenizer.bos_token) is None or not template.startswith(begin):
        before, after = special_around(tokenizer.json, folder)
        # A blank before the first word is put there by some tokenizers only where nothing else is before it.
        begins = [f"{before}{blank}{template}{after}" for blank in ("", _BLANK)]
    layout = _layout(opened, processor)
    return _first_that_fits(
        opened, [_with_templates(tokenizer, layout, text, "{question}", INSTRUCTION) for text in begins], ids
    )


def written_as_prefix(question: str, caption: str) -> Callable[[Opened, SourceTokenizer], Written]:
    """The same for a processor without conversations, which takes the words of a task after the image.

    Args:
        question: what the model is given for `{question}`; caption: and for a caption.
    """

    def written(opened: Opened, tokenizer: SourceTokenizer) -> Written:
        processor = _processor(opened.folder)

        def ids(image: Image.Image, text: str) -> list[int]:
            asked = question.replace("{question}", text)
            return list(processor(images=image, text=f"{processor.image_token}{asked}").input_ids[0])

        template = f"{{image}}{processor.tokenizer.bos_token}{{question}}\n"
        layout = _layout(opened, processor)
        return _first_that_fits(opened, [_with_templates(tokenizer, layout, template, question, caption)], ids)

    return written


def _processor(folder: Path) -> Any:
    from transformers import AutoProcessor

    try:
        with quiet_transformers():
            return AutoProcessor.from_pretrained(folder, local_files_only=True, trust_remote_code=False, backend="pil")
    except Exception as error:  # each of its parts raises what it likes
        raise CheckpointError(
            f"{folder}: expected the processor of the model, found: {type(error).__name__}: {one_line(error)[:300]}; "
            "save it into this folder with save_pretrained"
        ) from error


def _with_templates(
    tokenizer: SourceTokenizer, layout: ImageLayout, template: str, question: str, caption: str
) -> SourceTokenizer:
    """The tokenizer with what is written for a question, a prompt and a caption in the place of `{question}`."""
    spec = replace(
        tokenizer.spec,
        question_template=template.replace("{question}", question),
        prompt_template=template.replace("{question}", "{prompt}"),
        caption_template=template.replace("{question}", caption),
        image_layout=layout,
    )
    return replace(tokenizer, spec=spec)


def _layout(opened: Opened, processor: Any) -> ImageLayout:
    """What the processor writes for an image, with as many image tokens as the model has."""
    folder, tokens = opened.folder, opened.tokens
    token = str(processor.tokenizer.convert_ids_to_tokens(int(opened.model.config.image_token_id)))
    pixels = np.zeros((3, opened.side_px, opened.side_px), np.float32)
    text = str(processor.replace_image_token({"pixel_values": [pixels], "num_crops": [0]}, 0))
    if text.count(token) != tokens or token * tokens not in text:
        raise CheckpointError(
            f"{folder}: expected a processor that writes {tokens} times {show(token)} for an image, as many image "
            f"tokens as the model makes of it, found one that writes it {text.count(token)} times; processor and "
            "config.json are not of one model"
        )
    return ImageLayout(token, tokens, text.replace(token * tokens, "{tokens}"))


def _first_that_fits(
    opened: Opened, candidates: Sequence[SourceTokenizer], ids: Callable[[Image.Image, str], list[int]]
) -> Written:
    """The first with which the runtime makes of questions the very tokens that Transformers makes.

    Args:
        ids: an image and a question → the token ids of the processor.

    Raises:
        CheckpointError: none of them does, or a token is beyond the model's.
    """
    image, words = Image.new("RGB", (_SIDE_PX, _SIDE_PX)), int(opened.model.config.text_config.vocab_size)
    with quiet_transformers():
        expected = {question: ids(image, question) for question in (*QUESTIONS, INSTRUCTION)}
    if (last := max(map(max, expected.values()))) >= words:
        raise CheckpointError(
            f"{opened.folder / 'config.json'}: text_config.vocab_size: expected more than {last}, a token of the "
            f"processor's prompts, found {words}; config.json and the tokenizer are not of one model"
        )
    others = [_written_otherwise(candidate, expected) for candidate in candidates]
    fitting = next((one for one, other in zip(candidates, others, strict=True) if other is None), None)
    if fitting is None:
        raise CheckpointError(
            f"{opened.folder}: expected a processor whose prompts are texts beside each other, found one that writes "
            f"{show(others[0])} beside an image otherwise; it cannot be carried over"
        )
    return Written(fitting)


def _written_otherwise(tokenizer: SourceTokenizer, expected: Mapping[str, Sequence[int]]) -> str | None:
    """The first question of which the runtime makes other tokens."""
    with tempfile.TemporaryDirectory() as place:
        path = Path(place) / tokenizer.spec.file
        path.write_text(tokenizer.json, encoding="utf-8")
        codec = TextCodec(path, replace(tokenizer.spec, unknown_token_id=None, max_tokens=_NO_LIMIT))
    found = {question: codec.encode_question(question, special_tokens=False).ids for question in expected}
    return next((question for question, ids in expected.items() if list(found[question]) != ids), None)
