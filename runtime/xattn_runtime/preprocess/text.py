"""Text to token ids and back, with the bundle's tokenizer.json.

It checks questions, texts and prompts and decodes what was generated; it knows no graph, and pads nothing but what the
model was trained to see padded.
"""

from __future__ import annotations

import os
import string
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from xattn_runtime import arguments
from xattn_runtime.errors import BundleError, QuestionError, UserError
from xattn_runtime.json_reader import one_line, show
from xattn_runtime.preprocess.prompts.chat import ChatWriter, Turn
from xattn_runtime.preprocess.tokenizer import ONE_IMAGE, ImageLayout, PromptImages, TokenizerSpec

__all__ = ["QUESTION_LIMIT_CHARACTERS", "EncodedQuestion", "TextCodec"]

QUESTION_LIMIT_CHARACTERS = 2000
_EXAMPLES = 8
_OTHER_SCRIPTS = "какого 図形 ♥"
# Transformers' `clean_up_tokenization`, in its order.
_CLEAN_UP = (
    *((f" {mark}", mark) for mark in ".?!,"),
    (" ' ", "'"),
    *((f" {ending}", ending) for ending in ("n't", "'m", "'s", "'ve", "'re")),
)


@dataclass(frozen=True)
class EncodedQuestion:
    """Token ids of a question, and the words in it that the model does not know."""

    ids: tuple[int, ...]
    unknown_words: tuple[str, ...]


class TextCodec:
    """The tokenizer of one bundle."""

    def __init__(self, path: str | os.PathLike[str], spec: TokenizerSpec) -> None:
        """Load tokenizer.json at `path`; BundleError where it is none, or has no token `unknown_token_id`."""
        from tokenizers import Tokenizer

        try:
            self._tokenizer: Any = Tokenizer.from_file(os.fspath(path))
        except Exception as error:  # the Rust library raises bare Exception
            raise BundleError(
                f"{path}: expected a tokenizer of the tokenizers library, found: {one_line(error)}"
            ) from error
        # The file must not do what the runtime does itself, and cannot say how special tokens in a text are read.
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        self._tokenizer.encode_special_tokens = spec.split_special_tokens
        self._spec = spec
        if spec.unknown_token_id is not None and self._tokenizer.id_to_token(spec.unknown_token_id) is None:
            raise BundleError(f"{path}: expected an unknown token with the id {spec.unknown_token_id}, found none")
        self._image_token_id: int | None = None
        if spec.image_layout is not None:
            self._image_token_id = self._read_image_token(path, spec.image_layout)
        self._chat = None if spec.chat is None else ChatWriter(spec.chat, os.fspath(path))

    def encode_question(
        self, question: str, *, special_tokens: bool = True, kind: str = "question", images: PromptImages = ONE_IMAGE
    ) -> EncodedQuestion:
        """Token ids of `question`, surrounding blanks taken off, in the bundle's template for questions.

        `special_tokens`: with those that the tokenizer puts around a text, as a text encoder takes it, or without, as a
        decoder takes it after its own prompt. `kind`: what an error calls it. `images`: what the question is about,
        where it stands in the text.
        Raises QuestionError where it is no text, empty, over 2,000 characters, over the model's number of tokens, or
        holds no word that the model knows.
        """
        video = None if images.clock is None else self._spec.video_layout
        template = tuple((self._spec.question_template if video is None else video.template).split("{question}"))
        encoded = self._encode(kind, question, template, special_tokens, images, QuestionError)
        missing = (self._spec.pad_to or 0) - len(encoded.ids)
        return EncodedQuestion(encoded.ids + (self._spec.pad_token_id,) * missing, encoded.unknown_words)

    def encode_chat(self, turns: Sequence[Turn], images: PromptImages) -> tuple[int, ...]:
        """Token ids of a conversation up to where the answer begins, as the bundle's chat template writes it.

        Raises UserError where the model holds no conversations or its template refuses this one, QuestionError as
        `encode_question` does.
        """
        layout = self._spec.image_layout
        if self._chat is None or layout is None:
            raise UserError("chat: expected a model whose bundle has a chat template, found one that has none; ask it")
        names = {"system": "system", "user": "question"}
        checked = [
            Turn(turn.role, self._checked(names[turn.role], turn.text, QuestionError)) if turn.role in names else turn
            for turn in turns
        ]
        is_video = images.clock is not None
        written = [self._video(images)] if is_video else [layout.text(grid) for grid in images.grids]
        text = self._chat.text(checked, "video" if is_video else "image", written)
        ids = self._tokenizer.encode(text, add_special_tokens=self._chat.adds_special_tokens(text)).ids
        self._image_tokens("conversation", turns[-1].text, ids, images, QuestionError)
        return tuple(ids)

    def image_end(self, ids: Sequence[int]) -> int:
        """How many of a prompt's `ids` there are up to the last image token; 0 where there is none."""
        return max((place for place, token_id in enumerate(ids, 1) if token_id == self._image_token_id), default=0)

    def encode_prompt(self, prompt: str | None = None, images: PromptImages = ONE_IMAGE) -> tuple[int, ...]:
        """Token ids of the text that a caption continues, in the bundle's template, without special tokens.

        Without a prompt they are those of what the bundle says for captions, which may be none. `images`: as above.
        Raises UserError as `encode_question` raises QuestionError, and for a word that the model does not know.
        """
        if prompt is None:
            written = self._with_images(self._spec.caption_template, images)
            return tuple(self._tokenizer.encode(written, add_special_tokens=False).ids)
        template = tuple(self._spec.prompt_template.split("{prompt}"))
        encoded = self._encode("prompt", prompt, template, False, images, UserError)
        if encoded.unknown_words:
            raise UserError(
                f"prompt: expected words that this model knows, found {show(encoded.unknown_words[0])}; "
                f"it knows words like {', '.join(self._known_words())}"
            )
        return encoded.ids

    def encode_prefix(self, prefix: str) -> tuple[int, ...]:
        """Token ids of the text that a caption is to begin with; UserError as `encode_prompt`."""
        return self._plain_ids("prefix", prefix)

    def encode_answer(self, answer: str) -> tuple[int, ...]:
        """Token ids of an answer as the model would generate it; UserError as `encode_prompt`."""
        return self._plain_ids("answers", answer)

    def _plain_ids(self, kind: str, value: str) -> tuple[int, ...]:
        text = self._checked(kind, value, UserError)
        encoding = self._tokenizer.encode(text, add_special_tokens=False)
        barred = (self._spec.unknown_token_id, self._image_token_id)
        ids = zip(encoding.ids, encoding.offsets, strict=True)
        if unknown := [text[a:b] for token_id, (a, b) in ids if token_id in barred]:
            raise UserError(
                f"{kind}: expected words that this model knows, found {show(unknown[0])}; "
                f"it knows words like {', '.join(self._known_words())}"
            )
        return tuple(encoding.ids)

    def ids_of(self, texts: Sequence[str], *, special_tokens: bool = True) -> list[list[int]]:
        """Token ids of texts as they are: in no template, neither stripped nor checked."""
        encodings = self._tokenizer.encode_batch(list(texts), add_special_tokens=special_tokens)
        return [encoding.ids for encoding in encodings]

    def decode(self, ids: Sequence[int]) -> str:
        """The text of `ids`, special tokens and surrounding blanks left out."""
        text = str(self._tokenizer.decode(list(ids), skip_special_tokens=True))
        if self._spec.clean_up_spaces:
            for pattern, replacement in _CLEAN_UP:
                text = text.replace(pattern, replacement)
        return text.strip()

    def _encode(
        self,
        kind: str,
        value: str,
        template: tuple[str, ...],
        special_tokens: bool,
        images: PromptImages,
        error: type[UserError],
    ) -> EncodedQuestion:
        text = self._written_out(kind, self._checked(kind, value, error), error)
        before, after = (self._with_images(part, images) for part in template)
        whole = f"{before}{text}{after}"
        encoding = self._tokenizer.encode(whole, add_special_tokens=special_tokens)
        count = len(encoding.ids) - self._image_tokens(kind, text, encoding.ids, images, error)
        begin, end = len(before), len(before) + len(text)
        tokens = zip(encoding.ids, encoding.offsets, encoding.special_tokens_mask, strict=True)
        words = [(token, whole[a:b]) for token, (a, b), special in tokens if not special and a < end and b > begin]
        if count > self._spec.max_tokens >= len(words) and len(images.grids) > 1:
            raise error(
                f"images: expected at most {self._spec.max_tokens} tokens beside theirs, found {count}, as much is "
                f"written around {len(images.grids)} of them; ask about fewer, or smaller ones"
            )
        if count > self._spec.max_tokens:
            raise error(
                f"{kind}: expected at most {self._spec.max_tokens} tokens, found {count}: {show(text)}; "
                "write it in fewer words"
            )
        unknown = [word for token, word in words if token == self._spec.unknown_token_id]
        known = [word for token, word in words if token != self._spec.unknown_token_id]
        # Marks that a vocabulary has make no word of a text in another script.
        if not known or (all(map(_is_punctuation, known)) and not self._spells_everything()):
            raise error(
                f"{kind}: none of the words in {show(text)} is known to this model; "
                f"it knows words like {', '.join(self._known_words())}"
            )
        return EncodedQuestion(tuple(encoding.ids), tuple(dict.fromkeys(unknown)))

    def _checked(self, kind: str, value: str, error: type[UserError]) -> str:
        """`value` without the blanks around it; `error` where it is no text that this tokenizer can read."""
        text = _checked(kind, value, error)
        if self._spec.decodes_only:
            raise error(
                f"{kind}: expected none, since the tokenizer of this model can write texts but read none, found "
                f"{show(text)}; leave it out"
            )
        if refused := next((word for word in self._spec.refused_words if word in text), None):
            raise error(
                f"{kind}: expected a text without the special token {show(refused)}, found {show(text)}; write it in "
                "other words"
            )
        return text

    def _spells_everything(self) -> bool:
        """Whether the tokenizer has tokens for every text, as one of bytes has."""
        ids = self._tokenizer.encode(_OTHER_SCRIPTS, add_special_tokens=False).ids
        return self._spec.unknown_token_id not in ids

    def _written_out(self, kind: str, text: str, error: type[UserError]) -> str:
        """`text`, or what the bundle has for a word in it."""
        for word, prompt in (self._spec.prompts or {}).items():
            if word in text:
                rest = text.replace(word, "").strip()
                if bool(rest) != ("{input}" in prompt):
                    expected = "a text after" if not rest else "nothing but"
                    raise error(f"{kind}: expected {expected} {show(word)}, found {show(text)}")
                return prompt.replace("{input}", rest)
        return text

    def _with_images(self, template: str, images: PromptImages) -> str:
        """`template` with the images, or the video, written out."""
        layout = self._spec.image_layout
        if layout is None:
            return template
        if images.clock is not None:
            return template.replace("{video}", self._video(images))
        return template.replace("{image}", layout.between.join(layout.text(grid) for grid in images.grids))

    def _video(self, images: PromptImages) -> str:
        """What is written for a video; UserError where the model takes none."""
        layout, video = self._spec.image_layout, self._spec.video_layout
        if layout is None or video is None or images.clock is None:
            raise UserError(
                "video: expected a model that takes videos, found one that takes none; ask about its images"
            )
        return video.text(images.clock, layout.text())

    def _image_tokens(
        self, kind: str, text: str, ids: Sequence[int], images: PromptImages, error: type[UserError]
    ) -> int:
        """How many of `ids` stand for image tokens; `error` where `text` brings some that there is no image for."""
        layout = self._spec.image_layout
        if layout is None:
            return 0
        if (count := ids.count(self._image_token_id)) != sum(layout.count(grid) for grid in images.grids):
            raise error(
                f"{kind}: expected no {show(layout.token)}, which stands for a part of the image, found it in "
                f"{show(text)}; write it in other words"
            )
        return count

    def _read_image_token(self, path: str | os.PathLike[str], layout: ImageLayout) -> int | None:
        token_id: int | None = self._tokenizer.token_to_id(layout.token)
        count = self.encode_prompt().count(token_id) if token_id is not None else 0
        if count != layout.count():
            raise BundleError(
                f"{path}: expected {layout.count()} times the token {show(layout.token)} in the text of an image, "
                f"found it {count} times; export the bundle again"
            )
        return token_id

    def _known_words(self) -> list[str]:
        vocabulary: dict[str, int] = self._tokenizer.get_vocab(with_added_tokens=False)
        words = [word for word in vocabulary if len(word) > 1 and word.isalpha()]
        return sorted(words, key=vocabulary.__getitem__)[:_EXAMPLES]


def _is_punctuation(word: str) -> bool:
    """Whether there are only punctuation marks and blanks in `word`."""
    return all(
        character in string.punctuation or character.isspace() or unicodedata.category(character).startswith("P")
        for character in word
    )


def _checked(kind: str, value: str, error: type[UserError]) -> str:
    arguments.text(kind, value, error=error)
    if len(value) > QUESTION_LIMIT_CHARACTERS:
        raise error(
            f"{kind}: expected at most {QUESTION_LIMIT_CHARACTERS:,} characters, found {len(value):,}; "
            "write a shorter one"
        )
    text = value.strip()
    if not text:
        raise error(f"{kind}: expected a {kind}, found an empty text; write one")
    try:
        text.encode()
    except UnicodeEncodeError as problem:
        raise error(f"{kind}: expected Unicode text, found {show(text)}; write it again") from problem
    return text
