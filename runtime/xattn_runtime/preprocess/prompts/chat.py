"""A conversation as a model's chat template writes it: who says what, and where the images stand.

The template is run as `apply_chat_template` of Transformers runs it: the same variables, the same form of messages.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from typing import Any, Literal

from xattn_runtime.errors import BundleError, QuestionError, UserError
from xattn_runtime.json_reader import ObjectReader, one_line, show
from xattn_runtime.preprocess.prompts.sandbox import (
    MOST_CHARACTERS,
    SafeTemplate,
    TemplateFailure,
    compile_template,
)

__all__ = ["ChatSpec", "ChatWriter", "Turn", "read_chat"]

Speaker = Literal["system", "user", "assistant"]
Visual = Literal["image", "video"]
_MOST_SHOWN = 300


@dataclass(frozen=True)
class Turn:
    """What is said in a conversation, and by whom: `system`, `user` or `assistant`."""

    role: Speaker
    text: str


@dataclass(frozen=True)
class ChatSpec:
    """How conversations are written.

    template: the chat template, in Jinja. tokens: special tokens that it may use, by name, such as `bos_token`.
    image: what it writes in the place of an image. video, video_template: the same for a video, and the template for
        conversations about one, where there is another; None where the model takes none.
    """

    template: str
    tokens: Mapping[str, str] = field(default_factory=dict)
    image: str = "<image>"
    video: str | None = None
    video_template: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """As JSON values, without those of videos where there are none."""
        return {key: value for key, value in asdict(self).items() if value is not None}


def read_chat(reader: ObjectReader) -> ChatSpec:
    """The manifest's `chat`; BundleError for a key that is missing, unknown or of a wrong value."""
    spec = ChatSpec(
        template=reader.text("template"),
        tokens=reader.text_map("tokens") if "tokens" in reader else {},
        image=reader.text("image"),
        video=reader.text("video") if "video" in reader else None,
        video_template=reader.text("video_template") if "video_template" in reader else None,
    )
    for key in ("template", "video_template"):
        if len(text := getattr(spec, key) or "") > MOST_CHARACTERS:
            reader.fail(key, f"at most {MOST_CHARACTERS:,} characters", len(text))
    reader.finish()
    return spec


@dataclass(frozen=True)
class ChatWriter:
    """Writes conversations; it compiles the templates when it first needs them.

    place: of the bundle, for errors.
    """

    spec: ChatSpec
    place: str

    def text(self, turns: Sequence[Turn], visual: Visual, written: Sequence[str]) -> str:
        """The conversation up to where the answer begins, with `written`, what stands for each image or the video.

        These stand in the first turn of the user, before what is said.
        Raises QuestionError where a turn has the mark of an image in it, UserError where the template refuses them.
        """
        mark = self.spec.image if visual == "image" else self.spec.video
        if mark is None:
            raise UserError(f"{self.place}: expected images, found a video, which this model takes none of")
        for turn in turns:
            if mark in turn.text:
                raise QuestionError(
                    f"{_NAMES[turn.role]}: expected no {show(mark)}, which stands for {_ARTICLES[visual]}, found it in "
                    f"{show(turn.text)}; write it in other words"
                )
        text = self._rendered(self._videos if visual == "video" else self._images, _messages(turns, visual, written))
        parts = text.split(mark)
        if len(parts) != len(written) + 1:
            raise UserError(
                f"{self.place}: chat template: expected {show(mark)} once for each of {len(written)}, found it "
                f"{len(parts) - 1} times; the template cannot be asked so"
            )
        return "".join(f"{part}{image}" for part, image in zip(parts, (*written, ""), strict=True))

    def adds_special_tokens(self, text: str) -> bool:
        """Whether the tokenizer puts its own around `text`: as Transformers does, unless the first stands there."""
        first = self.spec.tokens.get("bos_token")
        return first is None or not text.startswith(first)

    @cached_property
    def _images(self) -> SafeTemplate:
        return self._compiled(self.spec.template)

    @cached_property
    def _videos(self) -> SafeTemplate:
        return self._compiled(self.spec.video_template or self.spec.template)

    def _compiled(self, source: str) -> SafeTemplate:
        try:
            return compile_template(source)
        except TemplateFailure as failure:
            raise BundleError(
                f"{self.place}: chat template: expected a template in Jinja, found: {_shown(failure)}; export it again"
            ) from failure

    def _rendered(self, template: SafeTemplate, messages: list[dict[str, Any]]) -> str:
        variables: dict[str, Any] = {"tools": None, "documents": None, "add_generation_prompt": True}
        variables = {**self.spec.tokens, **variables, "messages": messages}
        try:
            return template.render(variables)
        except TemplateFailure as failure:
            found = "one that calls for tools, which cannot be passed" if _calls_for_tools(template, variables) else ""
            raise UserError(
                f"{self.place}: chat template: expected one that writes {_described(messages)}, found "
                f"{found or f'that it refuses: {_shown(failure)}'}"
            ) from failure


def _calls_for_tools(template: SafeTemplate, variables: Mapping[str, Any]) -> bool:
    """Whether a template that has failed does not where it gets a tool."""
    tool = {"type": "function", "function": {"name": "tool", "description": "", "parameters": {}}}
    try:
        return bool(template.render({**variables, "tools": [tool]}))
    except TemplateFailure:
        return False


_NAMES: Mapping[Speaker, str] = {"system": "system", "user": "question", "assistant": "answer"}
_ARTICLES: Mapping[Visual, str] = {"image": "an image", "video": "a video"}


def _messages(turns: Sequence[Turn], visual: Visual, written: Sequence[str]) -> list[dict[str, Any]]:
    """The turns as Transformers takes them, every content a list of parts."""
    messages: list[dict[str, Any]] = []
    waiting = [{"type": visual} for _ in written]
    for turn in turns:
        parts: list[dict[str, Any]] = [{"type": "text", "text": turn.text}]
        if turn.role == "user":
            parts, waiting = [*waiting, *parts], []
        messages.append({"role": turn.role, "content": parts})
    return messages


def _described(messages: Sequence[Mapping[str, Any]]) -> str:
    roles = [message["role"] for message in messages]
    kinds = "with a system prompt" if "system" in roles else "without a system prompt"
    return f"a conversation of {len(roles)} messages {kinds}"


def _shown(failure: TemplateFailure) -> str:
    return one_line(failure)[:_MOST_SHOWN]
