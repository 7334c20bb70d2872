"""Word-level tokenizers, as `tokenizer.json` of the `tokenizers` library: truncation and padding off."""

from __future__ import annotations

from collections.abc import Iterable

from tokenizers import Tokenizer
from tokenizers.models import WordLevel, WordPiece
from tokenizers.normalizers import Lowercase, Replace, Sequence
from tokenizers.pre_tokenizers import Whitespace, WhitespaceSplit
from tokenizers.trainers import WordPieceTrainer

__all__ = ["END", "PADDING", "START", "UNKNOWN", "caption_tokenizer", "piece_tokenizer", "question_tokenizer"]

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


def piece_tokenizer(texts: Iterable[str], size: int) -> Tokenizer:
    """The commonest words of `texts`, in lower case, and pieces that spell all others (WordPiece); `size` ids."""
    tokenizer = Tokenizer(WordPiece(unk_token=_SPECIAL_TOKENS[UNKNOWN]))
    tokenizer.normalizer = Lowercase()
    tokenizer.pre_tokenizer = Whitespace()
    trainer = WordPieceTrainer(vocab_size=size, special_tokens=list(_SPECIAL_TOKENS), show_progress=False)
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def _word_level(words: set[str]) -> Tokenizer:
    vocabulary = {word: number for number, word in enumerate((*_SPECIAL_TOKENS, *sorted(words)))}
    tokenizer = Tokenizer(WordLevel(vocabulary, unk_token=_SPECIAL_TOKENS[UNKNOWN]))
    tokenizer.add_special_tokens(list(_SPECIAL_TOKENS))
    return tokenizer
