"""Asks an original tokenizer and a bundle's for the same ids and texts, and says where they differ.

Texts hold what tokenizers disagree on: capitals, accents in both forms, other scripts, blanks, signs, and every added
and special token by itself and among words. Texts are also written of many random ids. All is drawn with one seed.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

from xattn_export.families.checkpoint_folder.tokenization.original import Original
from xattn_runtime.json_reader import show
from xattn_runtime.preprocess.text import TextCodec

__all__ = ["Difference", "reading_difference", "refused_words", "writing_difference"]

TEXTS = (
    "a photo of a cat",
    "  Two dogs  and\ta cat\non the Table  ",
    "What color is the O'Neill's ball, isn't it?",
    "don't we'll they're I'd you've it's I'm 's 'S",
    "Hello , world ! Is it 3 . 5 ? It 's n't ' so '",
    "CAFÉ naïve Ångström, Straße İstanbul ǅ",
    "cafe\u0301 A\u030angstro\u0308m e\u0301 vs \u00e9",
    "ﬁne ½ ① Ａｂｃ ｶﾞ ㎏ x² ™ …",
    "猫と犬が走る。カタカナ、東京",
    "红色的球在桌子上，中文 한국어 각",
    "русский язык Ελληνικά ΟΔΟΣ Việt Nam ặ ợ",
    "שלום עולם مرحبا بالعالم हिन्दी ไทย",
    "🙂 👩\u200d👩\u200d👧 👍🏽 🇩🇪 ☀\ufe0f",
    "1 23 456 7890 12.50 1,000 0x1F",
    "a\u00a0b\u2003c\u200bd\u00ade\u3000f\ufeffg",
    "a\u0000b\u0001c\ufffdd",
    "...!?,;:'\"()[]{}<>@#$%^&*-_=+\\/|~`",
    "https://example.org/a_b?c=d&e=1#f name@example.org",
    "word " * 20,
    "thequickbrownfoxjumpsoverthelazydog Donaudampfschifffahrtsgesellschaft",
    "\n\n a \r\n b \t ",
    "▁a ▁▁b Ġc ##d e</w> f@@ g",
    "",
)
_AROUND = ("{}", "{}a dog", "a dog{}", "a dog {} and a cat", "a dog{}and a cat", "a dog  {}\n and", "{} {}{}", "A{}.")
_SEED = 17
_SEQUENCES = 1000
_LONGEST = 16
_SHARE_OF_ADDED = 0.15


@dataclass(frozen=True)
class Difference:
    """What was asked, what the original gives, and what the bundle's tokenizer gives, in words."""

    question: str
    expected: str
    found: str


def reading_difference(original: Original, codec: TextCodec, more: Sequence[str] = ()) -> Difference | None:
    """The first text without added tokens that `codec` reads otherwise than `original`; None if there is none."""
    words = _added_words(original)
    texts = [text for text in (*TEXTS, *more) if not any(word in text for word in words)]
    for special in (True, False):
        expected = original.ids_of(texts, special_tokens=special)
        for text, right, ids in zip(texts, expected, codec.ids_of(texts, special_tokens=special), strict=True):
            if ids != right:
                return Difference(show(text), show(right), show(ids))
    return None


def refused_words(original: Original, codec: TextCodec) -> tuple[str, ...]:
    """The added tokens that `codec` reads otherwise than `original` where they stand in a text."""
    words = _added_words(original)
    if not words:
        return ()
    texts = [around.replace("{}", word) for word in words for around in _AROUND]
    expected, found = original.ids_of(texts), codec.ids_of(texts)
    step = len(_AROUND)
    return tuple(
        word
        for number, word in enumerate(words)
        if expected[(part := slice(number * step, (number + 1) * step))] != found[part]
    )


def writing_difference(original: Original, codec: TextCodec) -> Difference | None:
    """The first sequence of ids that `codec` writes otherwise than `original`; None if there is none."""
    sequences = _sequences(original)
    for ids, right in zip(sequences, original.decode_all(sequences), strict=True):
        if (text := codec.decode(ids)) != right:
            return Difference(show(ids), show(right), show(text))
    return None


def _added_words(original: Original) -> list[str]:
    words = [str(token) for _, token in sorted(original.added.items())]
    return list(dict.fromkeys((*words, *map(str, original.tokenizer.all_special_tokens))))


def _sequences(original: Original) -> list[list[int]]:
    """Every added token by itself, and random ids with some of them in between."""
    chance = random.Random(_SEED)
    vocabulary: list[int] = sorted(set(original.tokenizer.get_vocab().values()))
    added = sorted(original.added) or vocabulary

    def one() -> int:
        return chance.choice(added if chance.random() < _SHARE_OF_ADDED else vocabulary)

    many = [[one() for _ in range(chance.randint(1, _LONGEST))] for _ in range(_SEQUENCES)]
    return [[number] for number in added] + many
