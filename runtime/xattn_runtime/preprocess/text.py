"""Text to token ids and back, with the bundle's tokenizer.json.

It checks questions and decodes captions; it knows no graph and pads nothing.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from xattn_runtime._reading import one_line, show
from xattn_runtime.errors import BundleError, QuestionError
from xattn_runtime.preprocess.tokenizer import TokenizerSpec

__all__ = ["QUESTION_LIMIT_CHARACTERS", "EncodedQuestion", "TextCodec"]

QUESTION_LIMIT_CHARACTERS = 2000
_EXAMPLES = 8


@dataclass(frozen=True)
class EncodedQuestion:
    """Token ids of a question, special tokens included, and the words in it that the model does not know."""

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

    def encode_question(self, question: str) -> EncodedQuestion:
        """Token ids of `question`, surrounding blanks taken off.

        Raises QuestionError where it is no text, empty, over 2,000 characters, over the model's number of tokens, or
        holds no word that the model knows.
        """
        text = _checked(question)
        encoding = self._tokenizer.encode(text)
        if len(encoding.ids) > self._spec.max_tokens:
            raise QuestionError(
                f"question: expected at most {self._spec.max_tokens} tokens, found {len(encoding.ids)}: {show(text)}; "
                "ask it in fewer words"
            )
        words = [i for i, special in enumerate(encoding.special_tokens_mask) if not special]
        unknown = [i for i in words if encoding.ids[i] == self._spec.unknown_token_id]
        if self._spec.unknown_token_id is not None and len(unknown) == len(words):
            raise QuestionError(
                f"question: none of the words in {show(text)} is known to this model; "
                f"it knows words like {', '.join(self._known_words())}"
            )
        spans = (encoding.offsets[i] for i in unknown)
        return EncodedQuestion(tuple(encoding.ids), tuple(dict.fromkeys(text[start:end] for start, end in spans)))

    def decode(self, ids: Sequence[int]) -> str:
        """The text of `ids`, special tokens left out."""
        return str(self._tokenizer.decode(list(ids), skip_special_tokens=True))

    def _known_words(self) -> list[str]:
        vocabulary: dict[str, int] = self._tokenizer.get_vocab(with_added_tokens=False)
        words = [word for word in vocabulary if len(word) > 1 and word.isalpha()]
        return sorted(words, key=vocabulary.__getitem__)[:_EXAMPLES]


def _checked(question: str) -> str:
    if not isinstance(question, str):
        raise QuestionError(f"question: expected text, found {show(question)}")
    if len(question) > QUESTION_LIMIT_CHARACTERS:
        raise QuestionError(
            f"question: expected at most {QUESTION_LIMIT_CHARACTERS:,} characters, found {len(question):,}; "
            "ask a shorter one"
        )
    text = question.strip()
    if not text:
        raise QuestionError("question: expected a question, found an empty text; write one")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise QuestionError(f"question: expected Unicode text, found {show(text)}; write it again") from error
    return text
