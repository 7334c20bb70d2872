"""A checkpoint's chat template as data: what is written around one image and one question.

The template is a program in Jinja. It is run by Transformers, in its sandbox, when the model is exported, and must then
have done no more than put texts beside each other; the bundle holds these texts.
https://huggingface.co/docs/transformers/chat_templating_multimodal
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from xattn_runtime.errors import CheckpointError
from xattn_runtime.json_reader import one_line, show

__all__ = ["INSTRUCTION", "QUESTIONS", "question_template_of", "stated_template"]

INSTRUCTION = "Can you describe this image?"
"""What is asked for a caption: the question of SmolVLM's own documentation."""

QUESTIONS = (
    "What color is the circle?",
    "is there a red square, on the {triangle}?",
    "How many?\nAnswer in one word: 1, 2 or 3",
    "O'Neill  asked: “¿qué es esto?” 東京 100% <b>",
)
"""Texts that a template must leave as they are."""

_MARK = "question-in-its-place"


def stated_template(settings: Mapping[str, Any], tokenizer: Any) -> object:
    """The chat template of the processor's `settings`, or else the tokenizer's; of several the one called `default`."""
    for stated in (settings.get("chat_template"), getattr(tokenizer, "chat_template", None)):
        if template := stated.get("default") if isinstance(stated, dict) else stated:
            return template
    return None


def question_template_of(
    folder: Path, template: object, render: Callable[..., str], image_token: str, kind: str = "image"
) -> str:
    """What the chat template of `folder` writes for an image and a question about it, up to where the answer begins.

    `{image}` and `{question}` mark their places; of another `kind` of input, such as `video`, its name.

    Args:
        template: the template itself, or None where the folder has none.
        render: a conversation → its text, as `apply_chat_template` of the tokenizer, with its arguments by name.
        image_token: what the template writes for the image.

    Raises:
        CheckpointError: there is no template; it fails; or it does more than to put image and text in their places.
    """
    if not isinstance(template, str):
        raise CheckpointError(
            f"{folder}: expected chat_template.jinja, which says how the model is asked, found {show(template)}; save "
            "the processor of an instruction-tuned model into this folder"
        )

    def text(question: str) -> str:
        parts = [{"type": kind}, {"type": "text", "text": question}]
        messages = [{"role": "user", "content": parts}]
        try:
            return render(messages, chat_template=template, tokenize=False, add_generation_prompt=True)
        except Exception as error:  # a template may raise what it likes
            raise CheckpointError(
                f"{folder}: chat_template: expected a text for one {kind} and one question, found: "
                f"{type(error).__name__}: {one_line(error)[:200]}"
            ) from error

    marked, places = text(_MARK), (f"{{{kind}}}", "{question}")
    written = marked.replace(image_token, places[0]).replace(_MARK, places[1])
    if any(part in marked for part in places) or not all(written.count(part) == 1 for part in places):
        raise CheckpointError(
            f"{folder}: chat_template: expected one that writes {image_token} and the question once, found "
            f"{show(marked)}; it cannot be carried over"
        )
    for question in QUESTIONS:
        if (other := text(question)) != written.replace(places[0], image_token).replace("{question}", question):
            raise CheckpointError(
                f"{folder}: chat_template: expected one that puts a question in its place, found one that makes "
                f"{show(other)} of {show(question)}; it cannot be carried over"
            )
    return written
