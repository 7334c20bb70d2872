"""Text to token ids and back, with the bundle's tokenizer.json.

It checks questions, texts and prompts and decodes what was generated; it knows no graph, and pads nothing but what the
model was trained to see padded.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from xattn_runtime._reading import one_line, show
from xattn_runtime.errors import BundleError, QuestionError, UserError
from xattn_runtime.preprocess.tokenizer import TokenizerSpec

__all__ = ["QUESTION_LIMIT_CHARACTERS", "EncodedQuestion", "TextCodec"]

QUESTION_LIMIT_CHARACTERS = 2000
_EXAMPLES = 8
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
        # The file must not do what the runtime does itself.
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        self._spec = spec
        if spec.unknown_token_id is not None and self._tokenizer.id_to_token(spec.unknown_token_id) is None:
            raise BundleError(f"{path}: expected an unknown token with the id {spec.unknown_token_id}, found none")

    def encode_question(self, question: str, *, special_tokens: bool = True, kind: str = "question") -> EncodedQuestion:
        """Token ids of `question`, surrounding blanks taken off, in the bundle's template for questions.

        `special_tokens`: with those that the tokenizer puts around a text, as a text encoder takes it, or without, as a
        decoder takes it after its own prompt. `kind`: what an error calls it.
        Raises QuestionError where it is no text, empty, over 2,000 characters, over the model's number of tokens, or
        holds no word that the model knows.
        """
        template = tuple(self._spec.question_template.split("{question}"))
        encoded = self._encode(kind, question, template, special_tokens, QuestionError)
        missing = (self._spec.pad_to or 0) - len(encoded.ids)
        return EncodedQuestion(encoded.ids + (self._spec.pad_token_id,) * missing, encoded.unknown_words)

    def encode_prompt(self, prompt: str) -> tuple[int, ...]:
        """Token ids of the text that a caption is to go on from, in the bundle's template, without special tokens.

        Raises UserError as `encode_question` raises QuestionError, and for a word that the model does not know.
        """
        encoded = self._encode("prompt", prompt, tuple(self._spec.prompt_template.split("{prompt}")), False, UserError)
        if encoded.unknown_words:
            raise UserError(
                f"prompt: expected words that this model knows, found {show(encoded.unknown_words[0])}; "
                f"it knows words like {', '.join(self._known_words())}"
            )
        return encoded.ids

    def decode(self, ids: Sequence[int]) -> str:
        """The text of `ids`, special tokens and surrounding blanks left out."""
        text = str(self._tokenizer.decode(list(ids), skip_special_tokens=True))
        if self._spec.clean_up_spaces:
            for found, wanted in _CLEAN_UP:
                text = text.replace(found, wanted)
        return text.strip()

    def _encode(
        self, kind: str, value: str, template: tuple[str, ...], special_tokens: bool, error: type[UserError]
    ) -> EncodedQuestion:
        text = _checked(kind, value, error)
        before, after = template
        whole = f"{before}{text}{after}"
        encoding = self._tokenizer.encode(whole, add_special_tokens=special_tokens)
        if len(encoding.ids) > self._spec.max_tokens:
            raise error(
                f"{kind}: expected at most {self._spec.max_tokens} tokens, found {len(encoding.ids)}: {show(text)}; "
                "write it in fewer words"
            )
        begin, end = len(before), len(before) + len(text)
        tokens = zip(encoding.ids, encoding.offsets, encoding.special_tokens_mask, strict=True)
        words = [(token, whole[a:b]) for token, (a, b), special in tokens if not special and a < end and b > begin]
        unknown = [word for token, word in words if token == self._spec.unknown_token_id]
        if len(unknown) == len(words):
            raise error(
                f"{kind}: none of the words in {show(text)} is known to this model; "
                f"it knows words like {', '.join(self._known_words())}"
            )
        return EncodedQuestion(tuple(encoding.ids), tuple(dict.fromkeys(unknown)))

    def _known_words(self) -> list[str]:
        vocabulary: dict[str, int] = self._tokenizer.get_vocab(with_added_tokens=False)
        words = [word for word in vocabulary if len(word) > 1 and word.isalpha()]
        return sorted(words, key=vocabulary.__getitem__)[:_EXAMPLES]


def _checked(kind: str, value: str, error: type[UserError]) -> str:
    if not isinstance(value, str):
        raise error(f"{kind}: expected text, found {show(value)}")
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
