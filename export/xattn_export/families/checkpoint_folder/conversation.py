"""A checkpoint's chat template for several images and several turns: what of it is carried over, and the proof.

What stands between images is data. Everything else a template may do, it does in the runtime, which must then write
what Transformers writes.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from xattn_export.families.checkpoint_folder.chat_prompt import QUESTIONS
from xattn_runtime.errors import CheckpointError, DependencyError, UserError
from xattn_runtime.json_reader import show
from xattn_runtime.preprocess.prompts.chat import ChatSpec, ChatWriter, Turn
from xattn_runtime.preprocess.prompts.sandbox import MOST_CHARACTERS

__all__ = ["between_images", "chat_of", "conversations", "messages_of"]

_SYSTEM = "You answer in one word, {always}: yes or “no”."
_ANSWERS = ("A red circle.", "Yes, it is\nblue <b>")


def conversations() -> Iterator[tuple[Turn, ...]]:
    """Conversations of one turn and more, with and without a system prompt."""
    for system, turns in itertools.product((False, True), (1, 2, 3)):
        said = [Turn("system", _SYSTEM)] if system else []
        for number in range(turns):
            said.append(Turn("user", QUESTIONS[number]))
            if number < turns - 1:
                said.append(Turn("assistant", _ANSWERS[number]))
        yield tuple(said)


def messages_of(turns: Sequence[Turn], images: int, kind: str = "image") -> list[dict[str, Any]]:
    """A conversation as Transformers' documentation writes it, with the images in the first turn of the user."""
    messages = []
    first = next(place for place, turn in enumerate(turns) if turn.role == "user")
    for place, turn in enumerate(turns):
        parts: list[dict[str, Any]] = [{"type": kind} for _ in range(images)] if place == first else []
        messages.append({"role": turn.role, "content": [*parts, {"type": "text", "text": turn.text}]})
    return messages


def between_images(template: str, render: Callable[..., str], image_token: str) -> str | None:
    """What a template writes between the images of a question; None where it writes several otherwise than one.

    render: as for `question_template_of`.
    """
    texts = []
    for images in (1, 2, 3):
        try:
            messages = messages_of((Turn("user", QUESTIONS[0]),), images)
            texts.append(render(messages, chat_template=template, tokenize=False, add_generation_prompt=True))
        except Exception:  # a template may raise what it likes
            return None
    one, two, three = texts
    before, _, after = one.partition(image_token)
    if not two.startswith(before) or not two.endswith(after) or two.count(image_token) != 2:
        return None
    between = two[len(before) + len(image_token) : len(two) - len(after) - len(image_token)]
    return between if three == before + between.join([image_token] * 3) + after else None


def chat_of(
    folder: Path,
    template: str,
    render: Callable[..., str],
    tokens: Mapping[str, object],
    image_token: str,
    video: tuple[str, str] | None = None,
) -> ChatSpec | None:
    """The chat template of `folder` for the runtime; None where it holds no conversation of several turns.

    Args:
        render: as for `question_template_of`.
        tokens: the tokenizer's special tokens, by name.
        image_token: what the template writes for an image.
        video: what it writes for a video, and the template of conversations about one, for a model that takes them.

    Raises:
        CheckpointError: the runtime would write a conversation otherwise than Transformers.
    """
    named = {name: token for name, token in tokens.items() if isinstance(token, str) and _uses(name, template, video)}
    token, video_template = (None, None) if video is None else video
    spec = ChatSpec(template, named, image_token, token, None if video_template == template else video_template)
    if len(template) > MOST_CHARACTERS:
        return None
    held = [
        _is_written_alike(folder, spec, turns, images, render, template, "image")
        for turns, images in itertools.product(conversations(), (1, 2))
    ]
    if token is not None and video_template is not None:
        for turns in conversations():
            _is_written_alike(folder, spec, turns, 1, render, video_template, "video")
    # Of one image, without a system prompt, in one turn and two.
    return spec if held[0] and held[2] else None


def _uses(name: str, template: str, video: tuple[str, str] | None) -> bool:
    """Whether a special token is of use: that of the beginning says what the tokenizer adds."""
    return name == "bos_token" or name in template or (video is not None and name in video[1])


def _is_written_alike(
    folder: Path,
    spec: ChatSpec,
    turns: Sequence[Turn],
    images: int,
    render: Callable[..., str],
    template: str,
    kind: Any,
) -> bool:
    """Whether both write a conversation, the same; false where both refuse it."""
    mark = str(spec.image if kind == "image" else spec.video)
    try:
        expected = render(
            messages_of(turns, images, kind), chat_template=template, tokenize=False, add_generation_prompt=True
        )
        if expected.count(mark) != images:
            return False
    except Exception:  # a template may raise what it likes
        expected = None
    try:
        found = ChatWriter(spec, str(folder)).text(turns, kind, [mark] * images)
    except DependencyError:
        raise
    except UserError:
        found = None
    if found != expected:
        raise CheckpointError(
            f"{folder}: chat_template: expected one that the runtime's sandbox renders as Transformers does, "
            f"{show(expected)}, found {show(found)} for a conversation of {len(turns)} turns; it cannot be carried over"
        )
    return found is not None
