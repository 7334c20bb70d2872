"""Word-level tokenizers, as `tokenizer.json` of the `tokenizers` library: truncation and padding off."""

from __future__ import annotations

from collections.abc import Iterable

from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.normalizers import Lowercase, Replace, Sequence
from tokenizers.pre_tokenizers import Whitespace, WhitespaceSplit

__all__ = ["END", "PADDING", "START", "UNKNOWN", "caption_tokenizer", "question_tokenizer"]

PADDING, UNKNOWN, START, END = range(4)
"""Ids of the special tokens, in every vocabulary."""

_SPECIAL_TOKENS = ("[PAD]", "[UNK]", "[START]", "[END]")
_BRITISH_SPELLINGS = {"colour": "color", "grey": "gray"}


def caption_tokenizer(captions: Iterable[str]) -> Tokenizer:
    """Every word of `captions`, case kept; decoding joins words by a space."""
    words = {word for caption in captions for word in caption.split()}
    tokenizer = _word_level(words)
    tokenizer.pre_tokenizer = WhitespaceSplit()
    return tokenizer


def question_tokenizer(questions: Iterable[str]) -> Tokenizer:
    """Every word and punctuation mark of `questions`, in lower case and American spelling."""
    splitter = Whitespace()
    words = {word for question in questions for word, _ in splitter.pre_tokenize_str(question.lower())}
    tokenizer = _word_level(words)
    spellings = [Replace(british, american) for british, american in _BRITISH_SPELLINGS.items()]
    tokenizer.normalizer = Sequence([Lowercase(), *spellings])
    tokenizer.pre_tokenizer = splitter
    return tokenizer


def _word_level(words: set[str]) -> Tokenizer:
    vocabulary = {word: number for number, word in enumerate((*_SPECIAL_TOKENS, *sorted(words)))}
    tokenizer = Tokenizer(WordLevel(vocabulary, unk_token=_SPECIAL_TOKENS[UNKNOWN]))
    tokenizer.add_special_tokens(list(_SPECIAL_TOKENS))
    return tokenizer
