"""What the manifest's `tokenizer` says, typed: the file, and how text is put to the model and read from it.

It reads and writes plain JSON values; `text.py` does what it says.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

from xattn_runtime.json_reader import ObjectReader
from xattn_runtime.preprocess.prompts.chat import ChatSpec, read_chat
from xattn_runtime.preprocess.prompts.video import MOST_FRAMES, VideoClock, VideoLayout, read_video_layout

__all__ = ["ONE_IMAGE", "WHOLE", "Grid", "ImageLayout", "PromptImages", "TokenizerSpec", "read_tokenizer"]

Grid = tuple[int, int]
"""Rows and columns of the tiles of an image, or of its image tokens where these follow from its shape."""

WHOLE: Grid = (0, 0)
"""Of an image that is not cut, or whose shape is not known yet."""

_MOST_IMAGE_TOKENS = 65536


@dataclass(frozen=True)
class PromptImages:
    """The images of a prompt, as far as its text depends on them.

    grids: how each is cut. clock: of a video, when each of its frames is seen; None where they are images.
    """

    grids: tuple[Grid, ...] = (WHOLE,)
    clock: VideoClock | None = None


ONE_IMAGE = PromptImages()
"""One that is not cut."""


@dataclass(frozen=True)
class ImageLayout:
    """How an image is written in a text, for a decoder that reads image tokens among those of the text.

    token: what stands for one image token; the tokenizer has it as a token of its own.
    tokens: how many image tokens an image has, or each of its tiles; None where that follows from its shape.
    whole: what is written for an image, with `{tokens}` in the place of that many `token`s.
    tile: of an image that is cut, what is written for a tile, with `{row}` and `{column}`, counted from 1, too; None
        where images are not cut.
    row_end, before_whole: what follows a row of tiles, and what stands before the whole image, which comes last.
    merge: where images come in patches, as many as their shape has: the side of the square of patches that becomes one
        image token. None elsewhere.
    most_images: the most images that a prompt may have.
    between: what is written between one image and the next.
    whole_prompt: a prompt is read at once, since its tokens see those that come after them; its beginning cannot be
        kept.
    """

    token: str
    tokens: int | None
    whole: str
    tile: str | None = None
    row_end: str = ""
    before_whole: str = ""
    merge: int | None = None
    most_images: int = 1
    between: str = ""
    whole_prompt: bool = False

    def text(self, grid: Grid = WHOLE) -> str:
        """What is written for an image of a grid of tiles, or of image tokens."""
        rows, columns = grid
        if self.tokens is None:
            return self.whole.replace("{tokens}", self.token * self.count(grid))
        cut = "".join(
            "".join(self._tile(row, column) for column in range(1, columns + 1)) + self.row_end
            for row in range(1, rows + 1)
        )
        return (cut and cut + self.before_whole) + self._with_tokens(self.whole)

    def count(self, grid: Grid = WHOLE) -> int:
        """How many image tokens such an image has; one where its shape is not known."""
        rows, columns = grid
        return max(1, rows * columns) if self.tokens is None else (rows * columns + 1) * self.tokens

    def to_dict(self) -> dict[str, Any]:
        """As JSON values, without those that are neutral, and those of tiles or patches where there are none."""
        neutral: dict[str, object] = {"most_images": 1, "between": "", "whole_prompt": False}
        if self.tile is None:
            neutral |= {"row_end": "", "before_whole": ""}
        return {
            key: value
            for key, value in asdict(self).items()
            if value is not None and (key not in neutral or value != neutral[key])
        }

    def _tile(self, row: int, column: int) -> str:
        tile = (self.tile or "").replace("{row}", str(row)).replace("{column}", str(column))
        return self._with_tokens(tile)

    def _with_tokens(self, text: str) -> str:
        return text.replace("{tokens}", self.token * (self.tokens or 0))


@dataclass(frozen=True)
class TokenizerSpec:
    """The tokenizer's file, and how it is used.

    unknown_token_id: what stands for a word that the tokenizer does not know; None where it can spell every word.
    max_tokens: the most tokens that a question or prompt may have, those of the image not counted.
    clean_up_spaces: take the blank before punctuation and contractions off decoded text.
    question_template, prompt_template: the model's input for a question or a caption's prompt, with
        `{question}` or `{prompt}` in its place.
    caption_template: its input for a caption without a prompt.
    prompts: what it is given for a text with one of these words, with `{input}` in the place of what else the text
        says; where there is none, the word must stand alone.
    pad_to: how long every question is made with `pad_token_id`, which the model then sees as it sees all tokens; None
        where it is left as long as it is.
    image_layout: how the image is written in the place of `{image}`, which all three templates then have; None where it
        does not stand in the text.
    video_layout: how a video is written, whose frames are images that are not cut; None where the model takes none.
    chat: how conversations are written; None where the model holds none.
    split_special_tokens: read a special token that a text spells out as any other word.
    decodes_only: it can write texts, and read none; no text may be put to the model then.
    refused_words: special tokens that must not stand in a text, since the original tokenizer reads what is beside them
        in a way of its own.
    """

    file: str
    unknown_token_id: int | None
    max_tokens: int
    clean_up_spaces: bool = False
    question_template: str = "{question}"
    prompt_template: str = "{prompt}"
    caption_template: str = ""
    prompts: Mapping[str, str] | None = None
    pad_to: int | None = None
    pad_token_id: int = 0
    image_layout: ImageLayout | None = None
    split_special_tokens: bool = False
    decodes_only: bool = False
    refused_words: tuple[str, ...] = ()
    video_layout: VideoLayout | None = None
    chat: ChatSpec | None = None

    def to_dict(self) -> dict[str, Any]:
        """As JSON values, without those that are neutral; `read_tokenizer` takes them back."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        neutral = {"unknown_token_id": None, **{field.name: field.default for field in fields(self)[3:]}}
        values["prompts"] = None if self.prompts is None else dict(self.prompts)
        stated = {name: value for name, value in values.items() if name not in neutral or value != neutral[name]}
        if self.refused_words:
            stated["refused_words"] = list(self.refused_words)
        parts = {key: getattr(self, key) for key in ("image_layout", "video_layout", "chat")}
        return stated | {key: part.to_dict() for key, part in parts.items() if part is not None}


def read_tokenizer(reader: ObjectReader) -> TokenizerSpec:
    """The manifest's `tokenizer`; BundleError for a key that is missing, unknown or of a wrong value."""
    layout = _layout(reader.child("image_layout")) if "image_layout" in reader else None
    places = () if layout is None else ("{image}",)
    spec = TokenizerSpec(
        file=reader.path("file"),
        unknown_token_id=reader.integer("unknown_token_id") if "unknown_token_id" in reader else None,
        max_tokens=reader.integer("max_tokens", minimum=1),
        clean_up_spaces=_flag(reader, "clean_up_spaces"),
        question_template=_template(reader, "question_template", "{question}", *places),
        prompt_template=_template(reader, "prompt_template", "{prompt}", *places),
        caption_template=_template(reader, "caption_template", *places),
        prompts=_prompts(reader) if "prompts" in reader else None,
        pad_to=reader.integer("pad_to", minimum=1) if "pad_to" in reader else None,
        pad_token_id=reader.integer("pad_token_id") if "pad_token_id" in reader else 0,
        image_layout=layout,
        split_special_tokens=_flag(reader, "split_special_tokens"),
        decodes_only=_flag(reader, "decodes_only"),
        refused_words=reader.texts("refused_words") if "refused_words" in reader else (),
        video_layout=read_video_layout(reader.child("video_layout")) if "video_layout" in reader else None,
        chat=read_chat(reader.child("chat")) if "chat" in reader else None,
    )
    reader.finish()
    _check_images(reader, spec)
    if spec.decodes_only and (spec.caption_template or layout is not None):
        reader.fail("decodes_only", "false, since the model is given a text with every image", True)
    if spec.pad_to is not None and spec.pad_to < spec.max_tokens:
        reader.fail("pad_to", f"at least max_tokens, which is {spec.max_tokens}", spec.pad_to)
    return spec


def _flag(reader: ObjectReader, key: str) -> bool:
    """Whether it is true; it is not where it is left out."""
    return reader.boolean(key) if key in reader else False


def _check_images(reader: ObjectReader, spec: TokenizerSpec) -> None:
    """BundleError unless videos and conversations have images that stand in the text."""
    for key in ("video_layout", "chat"):
        if getattr(spec, key) is not None and spec.image_layout is None:
            reader.fail(key, "an image_layout beside it", None)


def _template(reader: ObjectReader, key: str, *places: str) -> str:
    """A text that has each of `places` in it once; where none is stated, and none of an image is needed, just these."""
    if key not in reader and "{image}" not in places:
        return "".join(places)
    return reader.template(key, *places) if places else reader.text(key)


def _prompts(reader: ObjectReader) -> dict[str, str]:
    prompts = reader.text_map("prompts")
    for word, prompt in prompts.items():
        if not word or not prompt or prompt.count("{input}") > 1:
            reader.fail("prompts", "words with what is written for them, {input} in it at most once", {word: prompt})
    return prompts


def _layout(reader: ObjectReader) -> ImageLayout:
    tiled, merged = "tile" in reader, "merge" in reader
    layout = ImageLayout(
        token=reader.text("token"),
        tokens=None if merged else reader.integer("tokens", minimum=1),
        whole=reader.template("whole", "{tokens}"),
        tile=reader.template("tile", "{tokens}", "{row}", "{column}") if tiled else None,
        row_end=reader.any_text("row_end") if tiled and "row_end" in reader else "",
        before_whole=reader.any_text("before_whole") if tiled and "before_whole" in reader else "",
        merge=reader.integer("merge", minimum=1) if merged else None,
        most_images=reader.integer("most_images", minimum=1) if "most_images" in reader else 1,
        between=reader.any_text("between") if "between" in reader else "",
        whole_prompt=_flag(reader, "whole_prompt"),
    )
    if tiled and merged:
        reader.fail("merge", "none beside a tile, since an image is cut into patches or tiles", layout.merge)
    if layout.most_images > MOST_FRAMES:
        reader.fail("most_images", f"at most {MOST_FRAMES}", layout.most_images)
    if layout.tokens is not None and layout.tokens > _MOST_IMAGE_TOKENS:
        reader.fail("tokens", f"at most {_MOST_IMAGE_TOKENS}", layout.tokens)
    reader.finish()
    return layout
