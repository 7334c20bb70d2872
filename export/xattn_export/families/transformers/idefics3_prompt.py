"""How the processors of Idefics3 and SmolVLM write an image and a question, as data; and the proof that it is so.

An image is written as its tiles, row by row, and then the whole; each is a number of image tokens between marks.
`Idefics3Processor` and `SmolVLMProcessor` write the same, of marks that SmolVLM's tokenizer may name.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from PIL import Image

from xattn_export.families.base import SourceTokenizer
from xattn_export.families.checkpoint_folder.chat_prompt import (
    INSTRUCTION,
    QUESTIONS,
    question_template_of,
    stated_template,
)
from xattn_export.families.checkpoint_folder.conversation import (
    between_images,
    chat_of,
    conversations,
    messages_of,
)
from xattn_export.families.checkpoint_folder.json_files import read_json
from xattn_export.families.checkpoint_folder.quiet import quiet_transformers
from xattn_export.families.transformers.smolvlm_video import VideoParts, video_of
from xattn_runtime.errors import CheckpointError, UserError
from xattn_runtime.json_reader import one_line, show
from xattn_runtime.preprocess.pipeline import Pipeline
from xattn_runtime.preprocess.prompts.chat import ChatSpec, Turn
from xattn_runtime.preprocess.prompts.video import MOST_FRAMES
from xattn_runtime.preprocess.steps import Step, Tile
from xattn_runtime.preprocess.text import TextCodec
from xattn_runtime.preprocess.tokenizer import ImageLayout, PromptImages

__all__ = ["ProcessorText", "processor_text", "tokenizer_with_images"]

# Widths and heights of images that are cut in different ways, or not at all.
_SHAPES_PX = ((1, 1), (64, 9), (9, 25), (30, 40))
_NO_LIMIT = 1 << 30
# Before it, after it, and what says that it is whole.
_MARKS_OF_AN_IMAGE = 3


@dataclass(frozen=True)
class ProcessorText:
    """What is written around an image and for it; and Transformers' own code that writes the same.

    template: with `{image}` and `{question}` in it. layout: what is written for the image.
    ids: a conversation, rows and columns of tiles of each image → the token ids of the processor. grid: an image → rows
        and columns.
    video: what it does with videos, of a processor that takes them. chat: how conversations are written, of a template
        that holds them.
    """

    template: str
    layout: ImageLayout
    ids: Callable[[Sequence[Turn], Sequence[tuple[int, int]]], list[int]]
    grid: Callable[[Image.Image], tuple[int, int]]
    video: VideoParts | None
    chat: ChatSpec | None


def tokenizer_with_images(
    folder: Path, tokenizer: SourceTokenizer, tokens: int, steps: Sequence[Step], config: Any
) -> tuple[SourceTokenizer, tuple[Step, ...] | None]:
    """The tokenizer in `folder` with what the processor writes around every text, and for its images.

    And the preprocessing of a frame of a video, where the processor takes videos.

    A caption is requested by the instruction in the place of the question; a caption's prompt is an instruction of
    one's own.

    Args:
        tokens: image tokens of a tile, as the model has them.
        steps: preprocessing, which may cut images into tiles.
        config: the model's, which must know these tokens, and the placeholder by the same number.

    Raises:
        CheckpointError: as `processor_text`; or the runtime would make other tokens of images and questions.
    """
    pipeline = Pipeline(steps)
    positions = config.text_config.max_position_embeddings
    text = processor_text(folder, tokens, steps, positions)
    spec = replace(
        tokenizer.spec,
        question_template=text.template,
        prompt_template=text.template.replace("{question}", "{prompt}"),
        caption_template=text.template.replace("{question}", INSTRUCTION),
        image_layout=text.layout,
        video_layout=None if text.video is None else text.video.layout,
        chat=text.chat,
    )
    written = replace(tokenizer, spec=spec)
    _check_text(folder, text, written, pipeline, config)
    return written, None if text.video is None else text.video.steps


def processor_text(folder: Path, tokens: int, steps: Sequence[Step], positions: int) -> ProcessorText:
    """What the processor in `folder` writes.

    Args:
        tokens: image tokens of a tile, as the model has them.
        steps: preprocessing, which may cut images.
        positions: of the model: so many tokens a prompt has at the most.

    Raises:
        CheckpointError: the processor is damaged, counts other image tokens, or has no chat template that can be
            carried over.
    """
    from transformers import AutoImageProcessor, AutoTokenizer, Idefics3Processor

    try:
        with quiet_transformers():
            tokenizer: Any = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
            images: Any = AutoImageProcessor.from_pretrained(folder, local_files_only=True, backend="pil")
            settings, _ = Idefics3Processor.get_processor_dict(folder, local_files_only=True)
            write, marks = _writer(folder, settings, tokenizer, images, tokens)
    except Exception as error:  # each of its parts raises what it likes
        raise CheckpointError(
            f"{folder}: expected the processor of Idefics3 or SmolVLM, found: {type(error).__name__}: "
            f"{one_line(error)[:300]}; save it into this folder with save_pretrained"
        ) from error
    if (stated := settings.get("image_seq_len", 169)) != tokens:
        raise CheckpointError(
            f"{folder / 'processor_config.json'}: image_seq_len: expected {tokens}, the image tokens that the model "
            f"makes of a tile, found {show(stated)}; the two must agree"
        )
    fake, image, whole = marks
    jinja, render = stated_template(settings, tokenizer), tokenizer.apply_chat_template
    template = question_template_of(folder, jinja, render, image)
    video = video_of(folder, steps, tokenizer) if _is_smolvlm(folder, settings) else None
    as_video = None if video is None else (video.token, video.template)
    chat = chat_of(folder, str(jinja), render, tokenizer.special_tokens_map, image, as_video)
    between = between_images(str(jinja), render, image)

    def ids(turns: Sequence[Turn], grids: Sequence[tuple[int, int]]) -> list[int]:
        messages = messages_of(turns, len(grids))
        text = render(messages, chat_template=jinja, tokenize=False, add_generation_prompt=True)
        first, *others = text.split(image)
        text = first + "".join(write(*grid) + other for grid, other in zip(grids, others, strict=True))
        begun = tokenizer.bos_token is not None and text.startswith(tokenizer.bos_token)
        token_ids: list[int] = tokenizer(text, add_special_tokens=not begun).input_ids
        return token_ids

    def grid(uncut: Image.Image) -> tuple[int, int]:
        cut = images(uncut, return_row_col_info=True)
        return cut["rows"][0][0], cut["cols"][0][0]

    tiled = any(isinstance(step, Tile) for step in steps)
    most = min(MOST_FRAMES, max(1, positions // (tokens + _MARKS_OF_AN_IMAGE)))
    layout = ImageLayout(
        token=image,
        tokens=tokens,
        whole=f"{fake}{whole}{{tokens}}{fake}",
        tile=f"{fake}<row_{{row}}_col_{{column}}>{{tokens}}" if tiled else None,
        row_end="\n" if tiled else "",
        before_whole="\n" if tiled else "",
        most_images=1 if between is None else most,
        between=between or "",
    )
    return ProcessorText(template, layout, ids, grid, video, chat)


def _check_text(folder: Path, text: ProcessorText, tokenizer: SourceTokenizer, pipeline: Pipeline, config: Any) -> None:
    """CheckpointError unless the runtime makes of images and questions the very tokens that Transformers makes."""
    with tempfile.TemporaryDirectory() as place:
        path = Path(place) / tokenizer.spec.file
        path.write_text(tokenizer.json, encoding="utf-8")
        codec = TextCodec(path, replace(tokenizer.spec, unknown_token_id=None, max_tokens=_NO_LIMIT))
    grids = []
    for number, (width, height) in enumerate(_SHAPES_PX):
        image = Image.new("RGB", (width, height))
        tiles = pipeline.tiles(image)
        grids.append((tiles.rows, tiles.columns))
        with quiet_transformers():
            grid = text.grid(image)
        for question in (QUESTIONS[number % len(QUESTIONS)], INSTRUCTION):
            seen = PromptImages(tuple(grids[-1:]))
            ids = codec.encode_question(question, special_tokens=False, images=seen).ids
            what = f"{show(question)} and an image of {width} × {height} pixels"
            _check_ids(folder, ids, text.ids((Turn("user", question),), [grid]), what)
            _check_placeholders(folder, ids, text.layout.count(grid), config)
    several = PromptImages(tuple(grids[1:]))
    if text.layout.most_images > 1:
        ids = codec.encode_question(QUESTIONS[0], special_tokens=False, images=several).ids
        _check_ids(
            folder, ids, text.ids((Turn("user", QUESTIONS[0]),), several.grids), "a question about several images"
        )
    for turns in conversations() if text.chat is not None else ():
        with suppress(UserError):  # what its template refuses, Transformers does too
            _check_ids(folder, codec.encode_chat(turns, several), text.ids(turns, several.grids), "a conversation")


def _check_ids(folder: Path, ids: Sequence[int], expected: Sequence[int], what: str) -> None:
    if list(ids) != list(expected):
        raise CheckpointError(
            f"{folder}: expected a processor whose prompts are texts beside each other, found one that writes {what} "
            "otherwise; it cannot be carried over"
        )


def _check_placeholders(folder: Path, ids: Sequence[int], count: int, config: Any) -> None:
    words, placeholder = config.text_config.vocab_size, config.image_token_id
    if max(ids) >= words or ids.count(placeholder) != count:
        found = f"tokens up to {max(ids)}, and {placeholder} {ids.count(placeholder)} times for {count}"
        raise CheckpointError(
            f"{folder}: expected tokens below {words} with {placeholder} for an image token, as config.json says, "
            f"found {found}; config.json and the tokenizer are not of one model"
        )


def _writer(
    folder: Path, settings: dict[str, Any], tokenizer: Any, images: Any, tokens: int
) -> tuple[Callable[[int, int], str], tuple[str, str, str]]:
    """What Transformers writes for rows and columns of tiles, and its three marks: around, of a token, of the whole."""
    from transformers import Idefics3Processor
    from transformers.models.smolvlm.processing_smolvlm import get_image_prompt_string

    if _is_smolvlm(folder, settings):
        # The class itself requires torchvision, for videos.
        fake = getattr(tokenizer, "fake_image_token", "<fake_token_around_image>")
        image = getattr(tokenizer, "image_token", "<image>")
        whole = getattr(tokenizer, "global_image_token", "<global-img>")

        def spell(rows: int, columns: int) -> str:
            return str(get_image_prompt_string(rows, columns, tokens, fake, image, whole))

        return spell, (fake, image, whole)
    processor = Idefics3Processor(images, tokenizer, image_seq_len=tokens)

    def write(rows: int, columns: int) -> str:
        return str(processor.replace_image_token({"rows": [[rows]], "cols": [[columns]]}, 0))

    return write, (processor.fake_image_token, processor.image_token, processor.global_image_tag)


def _is_smolvlm(folder: Path, settings: dict[str, Any]) -> bool:
    """Whether the processor is SmolVLM's, or the model is where no processor is named."""
    named = settings.get("processor_class") or read_json(folder / "preprocessor_config.json").get("processor_class")
    if named:
        return bool(named == "SmolVLMProcessor")
    return read_json(folder / "config.json").get("model_type") == "smolvlm"
