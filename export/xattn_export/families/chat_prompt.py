"""A checkpoint's chat template as data: what is written around one picture and one question, or before a caption.

The template is a program in Jinja. It is run by Transformers, in its sandbox, when the model is exported, and must then
have done no more than put texts beside each other; the bundle holds these texts.
https://huggingface.co/docs/transformers/chat_templating_multimodal
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from xattn_runtime._reading import one_line, show
from xattn_runtime.errors import CheckpointError

__all__ = ["QUESTIONS", "ChatTemplates", "chat_templates"]

QUESTIONS = (
    "What color is the circle?",
    "is there a red square, on the {triangle}?",
    "How many?\nAnswer in one word: 1, 2 or 3",
    "O'Neill  asked: “¿qué es esto?” 東京 100% <b>",
)
"""Texts that a template must leave as they are."""

_MARK = "question-in-its-place"


@dataclass(frozen=True)
class ChatTemplates:
    """`{image}`, `{question}` and `{prompt}` stand where they are put in.

    question: for one picture and a question about it, up to where the answer begins.
    caption: the same with a fixed question. prompt: the same with the beginning of the answer.
    """

    question: str
    caption: str
    prompt: str


def chat_templates(
    folder: Path, template: object, render: Callable[..., str], instruction: str, image_token: str
) -> ChatTemplates:
    """What the chat template of `folder` writes.

    Args:
        template: the template itself, or None where the folder has none.
        render: a conversation → its text, as `apply_chat_template` of the tokenizer, with its arguments by name.
        instruction: what is asked for a caption.
        image_token: what the template writes for the picture.

    Raises:
        CheckpointError: there is no template; it fails; or it does more than to put picture and text in their places.
    """
    if not isinstance(template, str):
        raise CheckpointError(
            f"{folder}: expected chat_template.jinja, which says how the model is asked, found {show(template)}; save "
            "the processor of an instruction-tuned model into this folder"
        )

    def text(question: str, answer: str | None = None) -> str:
        parts: list[dict[str, str]] = [{"type": "image"}, {"type": "text", "text": question}]
        messages: list[dict[str, Any]] = [{"role": "user", "content": parts}]
        ending = {"add_generation_prompt": True}
        if answer is not None:
            messages.append({"role": "assistant", "content": [{"type": "text", "text": answer}]})
            ending = {"continue_final_message": True}
        try:
            return render(messages, chat_template=template, tokenize=False, **ending)
        except Exception as error:  # a template may raise what it likes
            raise CheckpointError(
                f"{folder}: chat_template: expected a text for one picture and one question, found: "
                f"{type(error).__name__}: {one_line(error)[:200]}"
            ) from error

    question = _template(folder, text(_MARK), image_token, "{question}")
    caption = question.replace("{question}", instruction)
    prompt = _template(folder, text(instruction, _MARK), image_token, "{prompt}")
    for asked in QUESTIONS:
        pairs = (
            (text(asked), question.replace("{question}", asked)),
            (
                text(instruction, asked),
                prompt.replace("{prompt}", asked),
            ),
        )
        for found, expected in pairs:
            if found != expected.replace("{image}", image_token):
                raise CheckpointError(
                    f"{folder}: chat_template: expected one that puts a question in its place, found one that makes "
                    f"{show(found)} of {show(asked)}; it cannot be carried over"
                )
    return ChatTemplates(question, caption, prompt)


def _template(folder: Path, text: str, image_token: str, place: str) -> str:
    """`text` with `{image}` and `place` for what stands in it."""
    if text.count(image_token) != 1 or text.count(_MARK) != 1 or "{image}" in text or place in text:
        raise CheckpointError(
            f"{folder}: chat_template: expected one that writes {image_token} and the question once, found "
            f"{show(text)}; it cannot be carried over"
        )
    return text.replace(image_token, "{image}").replace(_MARK, place)
